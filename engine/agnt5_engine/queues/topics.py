"""The topics of queues: `steps.<queue>`, from the owners of runs to the queue's workers."""

from __future__ import annotations

import structlog

from agnt5_engine.settings import Settings
from agnt5_engine.topics import keep_ms, largest_bytes
from agnt5_engine.transport.base import BadTopicError, Log, TopicSpec

log = structlog.stdlib.get_logger(__name__)


def steps_spec(settings: Settings, queue: str) -> TopicSpec:
    """The topic of a queue, as the engine wants it. A command that it drops is sent again by the next owner only."""
    return TopicSpec(
        settings.steps_topic(queue),
        settings.partitions,
        "delete",
        keep_ms(settings),
        largest_bytes(settings),
    )


async def ensure_queue(log_: Log, settings: Settings, queue: str) -> int:
    """Make the queue's topic if it is missing; its number of partitions. Raises BadTopicError, RetriableError."""
    spec = steps_spec(settings, queue)
    found = await log_.topics([spec.name])
    if spec.name not in found:
        if not settings.create_topics:
            raise BadTopicError(
                f"topic {spec.name} does not exist and AGNT5_CREATE_TOPICS is 0: "
                f"`agnt5 topics plan --queue {queue}` prints how to make it"
            )
        await log_.create([spec], settings.replication)
        log.info("topic.created", topic=spec.name, partitions=spec.partitions)
        found = await log_.topics([spec.name])
    return found[spec.name].partitions if spec.name in found else spec.partitions
