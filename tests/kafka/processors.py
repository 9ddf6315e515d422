"""A processor reduced to its membership: a sink that remembers, in this process or in one of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from agnt5_engine.settings import Settings
from agnt5_engine.transport import make_membership
from agnt5_engine.transport.base import Batch, Membership, OffsetGoneError, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import plain, spec

SESSION_TIMEOUT = 6.0


class Recorder:
    """A sink that begins every journal partition where the group stands, and acknowledges triggers at once, or after
    so many seconds."""

    def __init__(self, log: KafkaLog, group: str, journal: str, acks_after: float = 0.0) -> None:
        self._log, self._group, self._journal, self._acks_after = log, group, journal, acks_after
        self.membership: Membership | None = None
        self.owned: frozenset[TopicPartition] = frozenset()
        self.events: list[tuple[str, frozenset[TopicPartition]]] = []
        self.seen: dict[TopicPartition, list[int]] = {}
        self.values: list[bytes | None] = []
        self.errors: list[tuple[TopicPartition, OffsetGoneError]] = []
        self.standbys: frozenset[int] = frozenset()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        fresh = partitions - self.owned
        self.owned = partitions
        self.events.append(("assigned", partitions))
        assert self.membership is not None
        for source in fresh:
            if source.topic == self._journal:
                self.membership.seek(source, await self._log.committed(self._group, source) or 0)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.owned -= partitions
        self.events.append(("revoked", partitions))

    def unreadable(self, source: TopicPartition, error: OffsetGoneError) -> None:
        self.errors.append((source, error))

    def standby(self, partitions: frozenset[int]) -> None:
        self.standbys = partitions

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        self.seen.setdefault(source, []).extend(record.offset for record in batch.records)
        self.values += [record.value for record in batch.records]
        if source.topic != self._journal:
            assert self.membership is not None
            asyncio.get_running_loop().call_later(self._acks_after, self.membership.acked, source, batch.next_offset)

    def journal_partitions(self) -> set[int]:
        return {source.partition for source in self.owned if source.topic == self._journal}


class Processor:
    def __init__(
        self,
        servers: str,
        group: str,
        journal: str,
        instance_id: str,
        *,
        partitions: int = 4,
        triggers: Sequence[str] = (),
        url: str | None = None,
        session_timeout: float = SESSION_TIMEOUT,
        acks_after: float = 0.0,
        **settings: Any,
    ) -> None:
        self.log = KafkaLog(plain(servers))
        self.sink = Recorder(self.log, group, journal, acks_after)
        self.membership = make_membership(
            f"kafka://{servers}",
            app_id=group,
            instance_id=instance_id,
            advertised_url=url or f"http://{instance_id}:8080",
            journal=journal,
            partitions=partitions,
            triggers=triggers,
            sink=self.sink,
            settings=Settings(broker=f"kafka://{servers}", **settings).model_copy(
                update={"session_timeout": session_timeout}
            ),
        )
        self.sink.membership = self.membership

    async def start(self) -> Processor:
        await self.membership.start()
        return self

    async def stop(self, *, leave: bool) -> None:
        await self.membership.stop(leave=leave)
        await self.log.close()


async def until(true: Callable[[], Any], timeout: float = 30.0) -> float:
    """Wait until something holds; returns how long that took, in seconds."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < timeout, "it did not come about"
        await asyncio.sleep(0.02)
    return time.monotonic() - start


async def make_journal(log: KafkaLog, name: str, partitions: int = 4) -> None:
    await log.create([spec(name, partitions)], 1)


class Child:
    """A processor in a process of its own, that can be frozen and killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[tuple[str, list[int]]] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, servers: str, group: str, journal: str, instance_id: str, session_timeout: float = SESSION_TIMEOUT
    ) -> Child:
        arguments = [servers, group, journal, instance_id, str(session_timeout)]
        command = [sys.executable, "-m", "tests.kafka.processors", *arguments]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events = [(kind, partitions) for kind, partitions in json.loads(line)]

    def assigned(self) -> list[int]:
        return self.events[-1][1] if self.events and self.events[-1][0] == "assigned" else []

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()
        await self._reading


async def _main(servers: str, group: str, journal: str, instance_id: str, session_timeout: str) -> None:
    session = float(session_timeout)
    processor = await Processor(servers, group, journal, instance_id, session_timeout=session).start()
    while True:
        events = [[kind, sorted(source.partition for source in sources)] for kind, sources in processor.sink.events]
        print(json.dumps(events), flush=True)
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
