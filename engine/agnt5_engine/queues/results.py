"""A worker's way into the journal: results and beats, to the partition of their run."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from agnt5_engine.partition.appender import Appender
from agnt5_engine.partition.timers import steady_ms
from agnt5_engine.records.journal import StepBeat, StepFailed, StepSucceeded
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.transport.base import Ack, Log, TopicPartition

Then = Callable[[], None]


class Results:
    """Appends to the journal `topic`. `failed` is called when that cannot be gone on with."""

    def __init__(self, log: Log, topic: str, partitions: int, failed: Callable[[BaseException], None]) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions
        self._failed = failed
        self._appenders: dict[int, Appender] = {}
        self._thens: dict[int, deque[Then | None]] = {}
        self._skew = time.time_ns() // 1_000_000 - steady_ms()  # log time minus the steady one

    def now(self) -> int:
        """The log's time, as far as this machine can tell (ms)."""
        return steady_ms() + self._skew

    def append(self, record: StepSucceeded | StepFailed | StepBeat, then: Then | None = None) -> None:
        """Write it soon; `then` is called when it is durable."""
        key = routing_key(record.run_id)
        partition = partition_of(key, self._partitions)
        appender = self._appenders.get(partition)
        if appender is None:
            appender = self._appenders[partition] = self._appender(partition)
        self._thens[partition].append(then)
        appender.append(key, record)

    def _appender(self, partition: int) -> Appender:
        thens = self._thens[partition] = deque()

        def acked(ack: Ack, batch: Sequence[object]) -> None:
            if ack.time > 0:
                self._skew = ack.time - steady_ms()
            for _ in batch:
                then = thens.popleft()
                if then is not None:
                    then()

        return Appender(self._log, TopicPartition(self._topic, partition), acked, self._failed)

    async def flushed(self) -> None:
        """Until everything so far is durable."""
        await asyncio.gather(*(appender.flushed() for appender in self._appenders.values()))

    async def close(self) -> None:
        await asyncio.gather(*(appender.close() for appender in self._appenders.values()))
