"""A worker and its group, where the broker does not answer as it should."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

import pytest
from aiokafka import TopicPartition, errors

from agnt5_engine.queues import worker as module
from agnt5_engine.queues.worker import Worker
from agnt5_engine.settings import Settings
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import plain
from tests.queues.test_pool import Journal, new_pool


class Anything:
    pass


class Consumer:
    """A group's member that has a partition and is not told where it ends."""

    def __init__(self, **options: Any) -> None:
        self._coordinator = self
        self._client = Anything()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def subscribe(self, topics: list[str], listener: Any) -> None:
        async def assign() -> None:
            with contextlib.suppress(Exception):  # aiokafka logs it and goes on
                await listener.on_partitions_assigned([TopicPartition(topics[0], 0)])

        self.task = asyncio.create_task(assign())

    async def fetch_committed_offsets(self, partitions: Any) -> dict[Any, Any]:
        return {}

    async def end_offsets(self, partitions: Any) -> Any:
        raise errors.KafkaTimeoutError("Failed to get offsets by times in 40000 ms")

    async def getmany(self, timeout_ms: int) -> dict[Any, Any]:
        await asyncio.sleep(timeout_ms / 1000)
        return {}

    def assignment(self) -> set[Any]:
        return set()

    paused = assignment


async def test_a_worker_that_cannot_learn_where_its_partitions_begin_does_not_keep_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AIOKafkaConsumer", Consumer)
    worker = Worker(Settings(broker="kafka://localhost:9092"), "q")
    worker.pool = new_pool(Journal())

    with pytest.raises(errors.KafkaTimeoutError):
        await asyncio.wait_for(worker._work(asyncio.Event()), 5)


async def test_a_worker_whose_queue_was_deleted_does_not_have_the_broker_make_it_anew_as_it_likes(kafka: str) -> None:
    worker = Worker(Settings(broker=f"kafka://{kafka}"), f"gone-{uuid.uuid4().hex}")
    worker.pool = new_pool(Journal())
    consumer = worker._consumer = await worker._join(asyncio.Event())
    log = KafkaLog(plain(kafka), patience=10)
    for _ in range(10):
        await asyncio.sleep(0.2)
        assert await log.topics([worker._topic]) == {}
    await consumer.stop()
    await log.close()
