"""Faust's transport over the embedded log: one process, so the group has one member, which has every partition."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from faust.transport import base
from faust.types import TP, ConsumerMessage

from agnt5_engine.transport.base import (
    BadTopicError,
    Batch,
    Member,
    Record,
    RetriableError,
    TopicPartition,
    TransportError,
)
from agnt5_engine.transport.embedded.log import EmbeddedLog, open_log
from agnt5_engine.transport.embedded.topics import Partition
from agnt5_engine.transport.faust_app import EngineApp, NoProducer, Wiring
from agnt5_engine.transport.membership import FaustMembership
from agnt5_engine.transport.sink_consumer import SinkConsumer

FAUST_URL = "agnt5-embedded://"
"""The scheme of the entry point; the directory itself travels in the wiring."""

log = structlog.stdlib.get_logger(__name__)


class EmbeddedConsumer(SinkConsumer):
    """Assigns itself all partitions of what it subscribes to, and reads a partition when its end has moved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log: EmbeddedLog | None = None
        self._topics: frozenset[str] = frozenset()
        self._partitions: dict[TP, Partition] = {}
        self._positions: dict[TP, int] = {}
        self._assigning = asyncio.Lock()

    @property
    def source_log(self) -> EmbeddedLog:
        if self._log is None:
            raise TransportError("the embedded consumer is not started")
        return self._log

    async def on_start(self) -> None:
        self._log = open_log(self.wiring.broker)
        self._log.store.announce(self.wiring.advertised_url)
        self._check_journal(self._log)
        self._log.topics_by_name.listeners.add(self._topics_made)

    def _check_journal(self, source: EmbeddedLog) -> None:
        journal, partitions = self.wiring.journal, self.wiring.partitions
        topic = source.topics_by_name.get(journal)
        if topic is None:
            raise BadTopicError(f"the journal {journal!r} does not exist; make it with `agnt5 topics apply`")
        if len(topic.partitions) != partitions:
            raise BadTopicError(
                f"the journal {journal!r} has {len(topic.partitions)} partitions, AGNT5_PARTITIONS says {partitions}; "
                f"their number is fixed once the journal exists, so set AGNT5_PARTITIONS={len(topic.partitions)}"
            )

    async def on_stop(self) -> None:
        await super().on_stop()
        for partition in self._partitions.values():
            partition.unlisten(self.turned.set)
        self._partitions.clear()
        if self._log is not None:
            source, self._log = self._log, None
            source.topics_by_name.listeners.discard(self._topics_made)
            await source.close()

    # -- assignment

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Take all partitions of the wiring's topics and of those that Faust's own channels want."""
        self._topics = self.wiring.topics.union(topics)
        self.add_future(self._assign())

    def _topics_made(self) -> None:
        if self._topics:
            self.add_future(self._assign())

    async def _assign(self) -> None:
        """Take what there is of the subscribed topics. There is no other member, so nothing is ever taken away."""
        async with self._assigning:
            source_log = self.source_log
            fresh = {
                TP(topic.name, partition.number): partition
                for topic in source_log.topics_by_name
                if topic.name in self._topics
                for partition in topic.partitions
            }
            if fresh.keys() <= self._partitions.keys():
                return
            self.app.on_rebalance_start()
            group = self.app.conf.id
            for source, partition in fresh.items():
                if source not in self._partitions:
                    self._partitions[source] = partition
                    partition.listen(self.turned.set)
                    committed = await source_log.committed(group, TopicPartition(*source))
                    self._committed_offset[source] = committed
                    self._positions[source] = max(partition.start, committed or 0)
            self.app.consumer_generation_id += 1
            await self.on_partitions_assigned(set(self._partitions), self.app.consumer_generation_id)

    def assignment(self) -> set[TP]:
        return set(self._partitions)

    async def group_members(self) -> list[Member]:
        journal = self.wiring.journal
        owned = sorted(source.partition for source in self._partitions if source.topic == journal)
        return [Member(self.wiring.instance_id, self.wiring.advertised_url, tuple(owned))]

    # -- reading

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, Any]:
        source_log = self.source_log
        self.turned.clear()
        found: dict[TP, Any] = {}
        for source in self._partitions if active_partitions is None else active_partitions:
            partition = self._partitions.get(source)
            if partition is None:
                continue
            position = self._positions[source]
            if position < partition.start and source.topic != self.wiring.journal:
                log.warning("events_expired", topic=source.topic, partition=source.partition, first=position,
                            lost=partition.start - position)  # fmt: skip
                position = partition.start
            if position != partition.end:
                batch = source_log.fetch(partition, position, partition.end)
                self._positions[source] = batch.next_offset
                found[source] = batch if source.topic in self.wiring.topics else batch.records
        if not found:
            await self.turned.wait()
        return found

    def to_batch(self, source: TP, fetched: Batch) -> Batch:
        return fetched

    def sink_known(self, source: TopicPartition, next_offset: int) -> None:
        tp = TP(*source)
        lane = self.lanes.get(tp)
        if lane is not None and lane.delivery is None and not lane.held and self._positions[tp] < next_offset:
            self._positions[tp] = lane.position = next_offset

    def client_seek(self, source: TP, offset: int) -> None:
        if source in self._positions:
            self._positions[source] = offset

    def _to_message(self, tp: TP, record: Record) -> ConsumerMessage:
        offset, time, key, value, headers = record
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            offset,
            time / 1000.0,
            1,  # LogAppendTime
            list(headers),
            key,
            value,
            None,
            len(key) if key is not None else -1,
            len(value) if value is not None else -1,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    # -- positions, as Faust's own topics need them

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        positions = {TopicPartition(*source): offset for source, offset in offsets.items()}
        try:
            await self.source_log.commit_offsets(self.app.conf.id, positions)
        except TransportError as error:
            log.warning("commit_failed", error=str(error))  # tried again at the next interval
            return False
        return True

    async def seek_to_committed(self) -> Mapping[TP, int]:
        positions: dict[TP, int] = {}
        for source in self._partitions.keys() - self.lanes.keys():
            committed = await self.source_log.committed(self.app.conf.id, TopicPartition(*source))
            if committed is not None:
                self._positions[source] = positions[source] = committed
        return positions

    async def _seek(self, partition: TP, offset: int) -> None:
        self.client_seek(partition, offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for source, offset in partitions.items():
            self.client_seek(source, offset)

    async def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {source: self._partitions[source].start for source in partitions}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {source: self._partitions[source].end for source in partitions}

    def highwater(self, tp: TP) -> int:
        return self._partitions[tp].end

    def topic_partitions(self, topic: str) -> int | None:
        found = self.source_log.topics_by_name.get(topic)
        return None if found is None else len(found.partitions)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition  # nothing is produced through Faust

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        raise BadTopicError(f"topic {topic!r} cannot be made through Faust; make it with `agnt5 topics apply`")


class Transport(base.Transport):  # type: ignore[misc]
    """`agnt5-embedded` among Faust's transports."""

    Consumer = EmbeddedConsumer
    Producer = NoProducer
    driver_version = "agnt5-embedded=1"


def make_membership(wiring: Wiring) -> FaustMembership:
    return FaustMembership(
        lambda: EngineApp(wiring, FAUST_URL),
        retriable=lambda error: isinstance(error, RetriableError),
    )
