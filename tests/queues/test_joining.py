"""A worker and its group, where the broker does not answer as it should."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiokafka import TopicPartition, errors

from agnt5_engine.queues import worker as module
from agnt5_engine.queues.worker import Worker
from agnt5_engine.settings import Settings
from tests.queues.test_pool import Journal, new_pool


class Consumer:
    """A group's member that has a partition and is not told where it ends."""

    def __init__(self, **options: Any) -> None:
        self._coordinator = self

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
