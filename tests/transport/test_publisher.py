"""Which partition an event goes to, while its topic changes."""

from __future__ import annotations

from typing import Any

import pytest

from agnt5_engine import publisher as module
from agnt5_engine.publisher import Publisher
from agnt5_engine.records.routing import partition_of
from agnt5_engine.settings import Settings
from agnt5_engine.transport.base import Ack, BadTopicError, Message, TopicInfo


class Topics:
    """A log whose topics have `partitions`, and which remembers the partition of what was appended last."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.last = -1

    async def topics(self, names: Any) -> dict[str, TopicInfo]:
        return {name: TopicInfo(name, self.partitions, {}) for name in names}

    async def append(self, target: Any, messages: Any) -> Ack:
        if target.partition >= self.partitions:
            raise BadTopicError(f"there is no {target}")
        self.last = target.partition
        return Ack(0, 0)


async def test_events_reach_a_topic_that_was_made_anew_with_fewer_partitions() -> None:
    log = Topics(64)
    publisher = Publisher(log, Settings(broker="kafka://localhost:9092"))  # type: ignore[arg-type]
    await publisher.publish("orders", [Message(b"o-1", b"1")])
    assert log.last > 0

    log.partitions = 1
    with pytest.raises(BadTopicError):
        await publisher.publish("orders", [Message(b"o-1", b"2")])
    await publisher.publish("orders", [Message(b"o-1", b"2")])

    assert log.last == 0


async def test_a_key_goes_where_kafkas_producers_send_it_also_after_partitions_were_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Topics(1)
    publisher = Publisher(log, Settings(broker="kafka://localhost:9092"))  # type: ignore[arg-type]
    await publisher.publish_event("orders", b"1", b"o-1", ())
    log.partitions = 64

    later = module.time.monotonic() + 600
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    partition, _ = await publisher.publish_event("orders", b"2", b"o-1", ())

    assert partition == log.last == partition_of("o-1", 64)
