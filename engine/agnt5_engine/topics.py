"""The engine's own topics: what they must be like, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agnt5_engine.transport.base import BadTopicError, Log, TopicInfo, TopicSpec

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings

_DAY = 86_400_000
#: Room for keys, names and the Avro frame around a payload of AGNT5_MAX_PAYLOAD_BYTES.
_ENVELOPE = 256 * 1024


def keep_ms(settings: Settings) -> int:
    """How long records of the engine are kept at least. AGNT5_RUN_RETENTION is for runs that have ended; those that
    live, and what waits for them, are not to be lost because that is short."""
    return max(settings.run_retention_ms * 2, 7 * _DAY)


def largest_bytes(settings: Settings) -> int:
    """How large a record with one payload may be."""
    return settings.max_payload_bytes + _ENVELOPE


def specs(settings: Settings) -> list[TopicSpec]:
    """The topics that the engine needs, as it wants them."""
    size = largest_bytes(settings)
    partitions = settings.partitions
    keep = keep_ms(settings)
    return [
        TopicSpec(settings.journal_topic, partitions, "delete", keep, size, log_append_time=True),
        # A session's row holds its whole state, a run's row its input and output.
        TopicSpec(settings.changelog_topic, partitions, "compact", None, size * 4),
        TopicSpec(settings.outcomes_topic, partitions, "compact,delete", keep, size * 2),
        TopicSpec(settings.dead_letters_topic, partitions, "delete", keep, size * 2),
    ]


async def ensure(log: Log, settings: Settings) -> dict[str, TopicInfo]:
    """Create what is missing (AGNT5_CREATE_TOPICS) and check what is there. Raises BadTopicError with the remedy."""
    wanted = specs(settings)
    found = await log.topics([s.name for s in wanted])
    _refuse(settings, wanted, found)
    missing = [s for s in wanted if s.name not in found]
    if missing:
        if not settings.create_topics:
            names = ", ".join(s.name for s in missing)
            raise BadTopicError(
                f"these topics do not exist and AGNT5_CREATE_TOPICS is 0: {names}. "
                "`agnt5 topics plan` prints how to make them"
            )
        await log.create(missing, settings.replication)
        found = await log.topics([s.name for s in wanted])
        _refuse(settings, wanted, found)
    return found


def _refuse(settings: Settings, wanted: Sequence[TopicSpec], found: Mapping[str, TopicInfo]) -> None:
    faults = disagreement(settings, found)
    if not faults:
        faults = [fault for spec in wanted if spec.name in found for fault in contradictions(spec, found[spec.name])]
    if faults:
        raise BadTopicError("\n".join(faults))


def disagreement(settings: Settings, found: Mapping[str, TopicInfo]) -> list[str]:
    """A changelog with another number of partitions than the journal's: no value of AGNT5_PARTITIONS fits both."""
    journal, changelog = found.get(settings.journal_topic), found.get(settings.changelog_topic)
    if journal is None or changelog is None or journal.partitions == changelog.partitions:
        return []
    return [
        f"topic {journal.name} has {journal.partitions} partitions and {changelog.name} has {changelog.partitions}: "
        "tables of another journal, or partitions were added, and runs would be looked for in the wrong place. "
        "Make both anew with one number of partitions, or use another AGNT5_TOPIC_PREFIX"
    ]


def contradictions(spec: TopicSpec, info: TopicInfo) -> list[str]:
    """Settings of a topic with which the engine would lose data, each with its remedy."""
    faults = []
    if info.partitions != spec.partitions:
        faults.append(
            f"topic {spec.name} has {info.partitions} partitions, AGNT5_PARTITIONS is {spec.partitions}: runs would be "
            f"looked for in the wrong place. Set AGNT5_PARTITIONS={info.partitions}"
        )
    policy = info.config.get("cleanup.policy")
    if spec.cleanup == "delete" and policy is not None and "compact" in policy:
        faults.append(
            f"topic {spec.name} is compacted (cleanup.policy={policy}): records of runs would vanish. "
            "Set cleanup.policy=delete"
        )
    if spec.cleanup == "compact" and policy is not None and "delete" in policy:
        faults.append(
            f"topic {spec.name} deletes old records (cleanup.policy={policy}): state of waiting runs would vanish. "
            "Set cleanup.policy=compact"
        )
    stamp = info.config.get("message.timestamp.type")
    if spec.log_append_time and stamp is not None and stamp != "LogAppendTime":
        faults.append(
            f"topic {spec.name} has message.timestamp.type={stamp}: a workflow's clock is the log's clock. "
            "Set message.timestamp.type=LogAppendTime"
        )
    keep = info.config.get("retention.ms")
    if spec.log_append_time and keep is not None and 0 <= int(keep) < 3_600_000:
        faults.append(
            f"topic {spec.name} keeps records for only {int(keep) / 1000:.0f} s (retention.ms): less than a checkpoint "
            f"may be old. Set retention.ms={spec.retention_ms}"
        )
    limit = info.config.get("retention.bytes")
    if spec.log_append_time and limit is not None and int(limit) >= 0:
        faults.append(
            f"topic {spec.name} keeps only {int(limit):,} bytes (retention.bytes): records of live runs would vanish "
            "when there is much to do. Set retention.bytes=-1"
        )
    largest = info.config.get("max.message.bytes")
    if largest is not None and int(largest) < spec.max_message_bytes:
        faults.append(
            f"topic {spec.name} takes records of up to {int(largest):,} bytes (max.message.bytes), "
            f"AGNT5_MAX_PAYLOAD_BYTES needs {spec.max_message_bytes:,} with what goes around a payload. Set "
            f"max.message.bytes={spec.max_message_bytes}, or a smaller AGNT5_MAX_PAYLOAD_BYTES"
        )
    return faults
