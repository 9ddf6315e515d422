"""`Log` on a Kafka cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import errors
from aiokafka.client import CoordinationType
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from agnt5_engine.transport.base import Ack, Batch, Member, Message, TopicInfo, TopicPartition, TopicSpec
from agnt5_engine.transport.kafka import topics as topics_
from agnt5_engine.transport.kafka.checkpoint import KafkaCheckpointer
from agnt5_engine.transport.kafka.members import drop_place, group_members
from agnt5_engine.transport.kafka.produce import Producer
from agnt5_engine.transport.kafka.read import read
from agnt5_engine.transport.kafka.wire import Attempt, Wire, unless_final

_EARLIEST, _LATEST = -2, -1
_COMMITTED = 1


class KafkaLog:
    """A Kafka cluster as the engine's log.

    `options` are aiokafka's client options (`Settings.kafka_options`). It connects with the first call. While brokers
    are away, an append waits for `delivery_timeout` seconds, a checkpoint for half a minute, any other call for
    `patience` seconds; then they raise RetriableError. All raise TransportError when the cluster refuses us.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        client_id: str = "agnt5",
        patience: float = float("inf"),
        delivery_timeout: float = 120.0,
    ) -> None:
        self.wire = Wire(options, client_id, patience)
        self._producer = Producer(self.wire, delivery_timeout)

    async def append(self, target: TopicPartition, messages: Sequence[Message]) -> Ack:
        return await self._producer.append(target, messages)

    def read(self, source: TopicPartition, start: int, end: int) -> AsyncIterator[Batch]:
        return read(self.wire, source, start, end)

    async def bounds(self, source: TopicPartition) -> tuple[int, int]:
        first, end = await asyncio.gather(self._offset(source, _EARLIEST), self._offset(source, _LATEST))
        return first, end

    async def offset_at(self, source: TopicPartition, time: int) -> int:
        offset = await self._offset(source, time)
        return offset if offset >= 0 else await self._offset(source, _LATEST)

    async def _offset(self, source: TopicPartition, time: int) -> int:
        topic, partition = source
        request = OffsetRequest(-1, _COMMITTED, [(topic, [(partition, time)])])
        attempt = Attempt(self.wire)
        while True:
            node = await self.wire.find_leader(source)
            try:
                response = await self.wire.send(node, request)
                ((_, ((_, code, _, offset, *_),)),) = response.topics
                if code == 0:
                    return int(offset)
                problem = unless_final(errors.for_code(code)())
            except errors.KafkaError as error:
                problem = unless_final(error)
            await attempt.failed(problem)
            await self.wire.refresh(topic)

    async def committed(self, group: str, source: TopicPartition) -> int | None:
        request = OffsetFetchRequest(group, [(source.topic, [source.partition])])
        attempt = Attempt(self.wire)
        while True:
            node = await self.wire.coordinator(CoordinationType.GROUP, group)
            try:
                response = await self.wire.send(node, request)
                code = response.error_code
                if code == 0:
                    ((_, ((_, offset, _, code),)),) = response.topics
                    if code == 0:
                        return int(offset) if offset >= 0 else None
                problem = unless_final(errors.for_code(code)())
            except errors.KafkaError as error:
                problem = unless_final(error)
            self.wire.forget_coordinator(CoordinationType.GROUP, group)
            await attempt.failed(problem)

    def checkpointer(self, transactional_id: str, group: str, changelog: TopicPartition) -> KafkaCheckpointer:
        return KafkaCheckpointer(self.wire, transactional_id, group, changelog)

    # -- the group, without being in it

    async def members(self, group: str, journal: str) -> list[Member]:
        return await group_members(self.wire, group, journal)

    async def drop_place(self, group: str, journal: str, name: str) -> list[str]:
        """Make the group forget the member at this place, alive or dead, at once; returns its instance ID, in a list
        that is empty when the group knows no such member."""
        return await drop_place(self.wire, group, journal, name)

    # -- topics

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        return await topics_.describe(self.wire, names)

    async def create(self, specs: Sequence[TopicSpec], replication: int | None) -> None:
        await topics_.create(self.wire, specs, replication)

    async def change(self, changes: Sequence[topics_.Change]) -> None:
        await topics_.change(self.wire, changes)

    async def brokers(self) -> int:
        """How many brokers there are: no topic can have more replicas."""
        return len((await self._metadata()).brokers)

    async def cluster_id(self) -> str:
        return str((await self._metadata()).cluster_id)

    async def _metadata(self) -> Any:
        return await self.wire.ask(MetadataRequest([], allow_auto_topic_creation=False))

    @property
    def away_for(self) -> float | None:
        return self.wire.away_for

    async def close(self) -> None:
        await self._producer.close()
        await self.wire.close()
