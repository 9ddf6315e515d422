"""A sink that notes what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agnt5_engine.transport.base import Batch, Membership, OffsetGoneError, Record, TopicPartition


class NotingSink:
    """Seeks every journal partition to 0 when it gets it, unless told to wait."""

    def __init__(self, journal: str, *, seek: bool = True) -> None:
        self.journal = journal
        self.membership: Membership | None = None
        self.seeks = seek
        self.assignments: list[frozenset[TopicPartition]] = []
        self.revocations: list[frozenset[TopicPartition]] = []
        self.records_of: dict[TopicPartition, list[Record]] = {}
        self.next_offset: dict[TopicPartition, int] = {}
        self.inside: set[TopicPartition] = set()
        self.before_records: Callable[[TopicPartition], None] = lambda source: None
        self.gates: dict[TopicPartition, asyncio.Event] = {}
        self.on_revoke: Callable[[], None] = lambda: None
        self._moved = asyncio.Event()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self.assignments.append(partitions)
        if self.seeks:
            assert self.membership is not None
            for source in partitions:
                if source.topic == self.journal:
                    self.membership.seek(source, 0)
        self._moved.set()

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.revocations.append(partitions)
        self.on_revoke()
        self._moved.set()

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        assert source not in self.inside, "two batches of one partition at once"
        self.inside.add(source)
        self._moved.set()
        try:
            self.before_records(source)
            if (gate := self.gates.get(source)) is not None:
                await gate.wait()
            await asyncio.sleep(0)
            assert batch.records
            self.records_of.setdefault(source, []).extend(batch.records)
            self.next_offset[source] = batch.next_offset
        finally:
            self.inside.discard(source)
            self._moved.set()

    def unreadable(self, source: TopicPartition, error: OffsetGoneError) -> None:
        raise error

    def standby(self, partitions: frozenset[int]) -> None:
        assert not partitions, "there is nobody to stand by for"

    def offsets(self, source: TopicPartition) -> list[int]:
        return [record.offset for record in self.records_of.get(source, [])]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._moved.clear()
            await asyncio.wait_for(self._moved.wait(), 30)
