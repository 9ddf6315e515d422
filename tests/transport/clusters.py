"""The clusters that the guarantees of transport/base.py are checked against, and what the tests say often."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from agnt5_engine.settings import Settings
from agnt5_engine.transport import make_membership, open_log
from agnt5_engine.transport.base import Log, Membership, Record, Sink, TopicPartition, TopicSpec


class Cluster(Protocol):
    """One place where logs are kept."""

    url: str
    advertised_url: str

    def open(self) -> Log: ...

    def join(self, group: str, journal: str, partitions: int, triggers: list[str], sink: Sink) -> Membership:
        """A membership, not started."""
        ...


class Directory:
    def __init__(self, path: Path) -> None:
        self.url = f"embedded://{path}"
        self.advertised_url = "http://127.0.0.1:8080"

    def open(self) -> Log:
        return open_log(self.url, None)

    def join(self, group: str, journal: str, partitions: int, triggers: list[str], sink: Sink) -> Membership:
        return _membership(self, group, journal, partitions, triggers, sink, None)


class Brokers:
    """A Kafka cluster, by its bootstrap servers."""

    def __init__(self, servers: str) -> None:
        self.url = f"kafka://{servers}"
        self.advertised_url = "http://127.0.0.1:8080"
        self._settings = Settings(broker=self.url)

    def open(self) -> Log:
        return open_log(self.url, self._settings)

    def join(self, group: str, journal: str, partitions: int, triggers: list[str], sink: Sink) -> Membership:
        return _membership(self, group, journal, partitions, triggers, sink, self._settings)


def _membership(
    cluster: Cluster, group: str, journal: str, partitions: int, triggers: list[str], sink: Sink, settings: Any
) -> Membership:
    return make_membership(
        cluster.url,
        app_id=group,
        instance_id="only",
        advertised_url=cluster.advertised_url,
        journal=journal,
        partitions=partitions,
        triggers=triggers,
        sink=sink,
        settings=settings,
    )


def spec(
    name: str,
    partitions: int = 1,
    *,
    cleanup: str = "delete",
    retention_ms: int | None = None,
    max_message_bytes: int = 1 << 20,
) -> TopicSpec:
    return TopicSpec(name, partitions, cleanup, retention_ms, max_message_bytes, log_append_time=True)


async def made(log: Log, name: str, partitions: int = 1, *, cleanup: str = "delete") -> TopicPartition:
    """A new topic's first partition."""
    await log.create([spec(name, partitions, cleanup=cleanup)], 1)
    return TopicPartition(name, 0)


async def everything(log: Log, source: TopicPartition, start: int | None = None) -> list[Record]:
    first, end = await log.bounds(source)
    records: list[Record] = []
    position = first if start is None else start
    async for batch in log.read(source, position, end):
        records += batch.records
        position = batch.next_offset
    assert position == end
    return records
