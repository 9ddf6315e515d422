"""What the tests of this folder say often."""

from __future__ import annotations

from agnt5_engine.transport.base import Record, TopicPartition, TopicSpec
from agnt5_engine.transport.kafka import KafkaLog


def plain(servers: str) -> dict[str, str]:
    return {"bootstrap_servers": servers, "security_protocol": "PLAINTEXT"}


def spec(name: str, partitions: int = 1, *, cleanup: str = "delete", log_append_time: bool = True) -> TopicSpec:
    return TopicSpec(name, partitions, cleanup, None, 2 * 2**20, log_append_time)


async def made(log: KafkaLog, name: str, partitions: int = 1, *, cleanup: str = "delete") -> TopicPartition:
    """A new topic's first partition."""
    await log.create([spec(name, partitions, cleanup=cleanup)], 1)
    return TopicPartition(name, 0)


async def everything(log: KafkaLog, source: TopicPartition, start: int = 0) -> list[Record]:
    _, end = await log.bounds(source)
    records: list[Record] = []
    position = start
    async for batch in log.read(source, start, end):
        records += batch.records
        position = batch.next_offset
    assert position == end
    return records
