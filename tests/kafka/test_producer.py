"""The producer against a broker that fails in every way a broker can, at random: nothing acknowledged is lost, doubled,
moved or reordered, and whoever gets no ack is told so."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

import pytest
from aiokafka import errors
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.memory_records import MemoryRecords

from agnt5_engine.transport.base import Message, RetriableError, TopicPartition, TransportError
from agnt5_engine.transport.kafka.produce import Producer

TARGETS = [TopicPartition("t", partition) for partition in range(3)]
NOT_LEADER, TOO_LARGE, NOT_ENOUGH_REPLICAS, AFTER_APPEND, NOT_AUTHORIZED, OUT_OF_ORDER = 6, 10, 19, 20, 31, 45


class Answer(NamedTuple):
    topics: Any
    error_code: int = 0
    producer_id: int = -1
    producer_epoch: int = 0


class Cluster:
    """Two brokers in memory, as a producer sees them through `Wire`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.logs: dict[TopicPartition, list[bytes]] = {target: [] for target in TARGETS}
        self.leaders = dict.fromkeys(TARGETS, 1)
        self.known: dict[TopicPartition, int | None] = dict.fromkeys(TARGETS)
        self.last: dict[tuple[TopicPartition, int], tuple[int, int, int]] = {}  # next sequence, first, its offset
        self.producers = 0
        self.calm = False

    def leader(self, target: TopicPartition) -> int | None:
        return self.known[target]

    async def refresh(self, *topics: str) -> bool:
        await asyncio.sleep(0)
        if not self.calm and self.random.random() < 0.2:
            return False
        self.known.update(self.leaders)
        return True

    def note_away(self, problem: Exception) -> None: ...

    def check_exists(self, target: TopicPartition) -> None: ...

    async def send(self, node: int, request: Any, channel: Any) -> Answer:
        await asyncio.sleep(0)
        luck = 1.0 if self.calm else self.random.random()
        if luck < 0.05:
            raise errors.NodeNotReadyError()
        if luck < 0.10:
            raise errors.KafkaConnectionError("lost on the way there")
        if isinstance(request, ProduceRequest):
            answers = [
                (topic, [(partition, *self._produce(node, TopicPartition(topic, partition), bytes(data)))
                         for partition, data in partitions])
                for topic, partitions in request._topics
            ]  # fmt: skip
            answer = Answer(answers)
        else:
            self.producers += 1
            answer = Answer([], producer_id=self.producers)
        if luck < 0.15:
            raise errors.RequestTimedOutError()  # lost on the way back
        return answer

    def _produce(self, node: int, target: TopicPartition, data: bytes) -> tuple[int, int, int]:
        if not self.calm and self.random.random() < 0.05:
            self.leaders[target] = 3 - self.leaders[target]
        if self.leaders[target] != node:
            return NOT_LEADER, -1, -1
        if not self.calm and self.random.random() < 0.03:  # as after an unclean election
            for key in [key for key in self.last if key[0] == target]:
                self.last[key] = (-1, -1, -1)
        records = MemoryRecords(data)
        batch = records.next_batch()
        first, values = batch.base_sequence, [record.value for record in batch]
        expected, last_first, last_offset = self.last.get((target, batch.producer_id), (0, -1, -1))
        if first == last_first:
            return 0, last_offset, 1
        if first != expected:
            return OUT_OF_ORDER, -1, -1
        if not self.calm and self.random.random() < 0.05:
            return NOT_ENOUGH_REPLICAS, -1, -1
        log = self.logs[target]
        offset = len(log)
        log.extend(values)
        self.last[target, batch.producer_id] = (first + len(values), first, offset)
        if not self.calm and self.random.random() < 0.05:
            return AFTER_APPEND, -1, -1
        return 0, offset, 1


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_a_broker_does_acknowledged_appends_are_there_once_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))
    cluster = Cluster(seed)
    producer = Producer(cluster)  # type: ignore[arg-type]
    acked: dict[TopicPartition, list[tuple[int, list[bytes]]]] = {target: [] for target in TARGETS}
    unknown: set[bytes] = set()

    async def write(target: TopicPartition, writer: int) -> None:
        for n in range(40):
            values = [b"%d.%d.%d.%d" % (target.partition, writer, n, k) for k in range(n % 3 + 1)]
            try:
                ack = await producer.append(target, [Message(None, value) for value in values])
            except RetriableError:
                unknown.update(values)
            else:
                acked[target].append((ack.offset, values))

    async with asyncio.timeout(30):
        await asyncio.gather(*(write(target, writer) for target in TARGETS for writer in range(4)))
        cluster.calm = True
        for target in TARGETS:
            await producer.append(target, [Message(None, b"last")])
    for target in TARGETS:
        log = cluster.logs[target]
        for offset, values in acked[target]:
            assert log[offset : offset + len(values)] == values
        surely = [value for value in log if value not in unknown]
        assert len(surely) == len(set(surely)) == sum(len(values) for _, values in acked[target]) + 1
        assert log[-1] == b"last"
    await producer.close()


class Strict(Cluster):
    """It takes no batch that is larger than a few bytes, and does not say how large one may be."""

    def __init__(self) -> None:
        super().__init__(0)
        self.calm = True

    def _produce(self, node: int, target: TopicPartition, data: bytes) -> tuple[int, int, int]:
        return (TOO_LARGE, -1, -1) if len(data) > 200 else super()._produce(node, target, data)


class Silent(Strict):
    async def ask(self, request: Any) -> Any:
        await asyncio.Event().wait()


class Closing(Strict):
    async def ask(self, request: Any) -> Any:
        raise RetriableError("closed")


@pytest.mark.parametrize("cluster", [Silent, Closing])
async def test_an_append_whose_topic_cannot_be_asked_for_its_limit_is_given_up_for_now_at_its_deadline(
    cluster: type[Strict],
) -> None:
    producer = Producer(cluster(), delivery_timeout=0.3)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        with pytest.raises(RetriableError, match="does not tell just now"):
            await producer.append(TARGETS[0], [Message(None, bytes(100))] * 2)
        await producer.append(TARGETS[0], [Message(None, b"small")])
    await producer.close()


class Forbidding(Cluster):
    async def send(self, node: int, request: Any, channel: Any) -> Answer:
        return Answer([], NOT_AUTHORIZED)


async def test_an_append_of_a_user_who_may_not_write_is_refused_at_once() -> None:
    """Kafka before 2.8 wants another right for this kind of producer than for the topic."""
    cluster = Forbidding(0)
    cluster.calm = True
    producer = Producer(cluster, delivery_timeout=2)  # type: ignore[arg-type]
    with pytest.raises(TransportError, match="Authorization"):
        await producer.append(TARGETS[0], [Message(None, b"")])
    await producer.close()
