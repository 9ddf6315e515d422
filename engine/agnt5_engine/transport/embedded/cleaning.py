"""Retention and compaction, in small bites on the event loop, so that neither ever holds up an append for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog

from agnt5_engine.transport.base import Record
from agnt5_engine.transport.embedded import batches
from agnt5_engine.transport.embedded.group_commit import Group
from agnt5_engine.transport.embedded.store import offset_of
from agnt5_engine.transport.embedded.topics import Partition

if TYPE_CHECKING:
    from agnt5_engine.transport.embedded.log import EmbeddedLog

INTERVAL = 30.0
"""Seconds between two rounds."""
TOMBSTONE_MS = 86_400_000
"""How long a deletion is kept in a compacted topic, for readers that have only its past: a day, as Kafka does."""
DIRTY_RECORDS = 10_000
"""Fewest new records that make a compaction worth its reading."""
_MAP_RECORDS = 500_000
_BITE = 1 << 18  # bytes between two looks at the event loop: about 2 ms of decoding

_Thinned = tuple[int, bytes | None]

log = structlog.stdlib.get_logger(__name__)


class Cleaner:
    def __init__(self, owner: EmbeddedLog) -> None:
        self._log = owner
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Start the background rounds, once there is a loop to run them."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="agnt5-log-cleaning")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.round()
                self._log.store.note_files()
            except Exception as error:  # a store that cannot be used just now may be opened anew
                log.warning("log_cleaning_failed", error=str(error) or repr(error))

    async def round(self, *, eager: bool = False) -> None:
        """Clean every topic once. `eager` compacts however little is new."""
        now = time.time_ns() // 1_000_000
        for topic in list(self._log.topics_by_name):
            for partition in topic.partitions:
                if topic.retention_ms is not None and "delete" in topic.cleanup:
                    await self._expire(partition, now - topic.retention_ms)
                if topic.compacted and (
                    eager or partition.end - partition.cleaned >= max(DIRTY_RECORDS, partition.kept)
                ):
                    await self._compact(partition, now)
                await asyncio.sleep(0)

    async def _expire(self, partition: Partition, before: int) -> None:
        """Drop what is older than `before`."""
        start = self._log.first_at(partition, before)
        if start <= partition.start:
            return

        def change(commit: Group) -> None:
            commit.batch.delete_range(partition.key(partition.start), partition.key(start))
            partition.start = start
            partition.cleaned = max(partition.cleaned, start)
            partition.save(commit.batch)

        await self._log.commit.change(change)

    async def _compact(self, partition: Partition, now: int) -> None:
        """Keep only the last record of each key, for everything but the last stored batch."""
        latest: dict[bytes, int] = {}
        upto = partition.cleaned
        async for base, data in self._stored(partition, max(partition.cleaned, partition.start)):
            upto = base
            for record in batches.decode(base, data):
                if record.key is not None:
                    latest[record.key] = record.offset
            if len(latest) >= _MAP_RECORDS:
                break
        if upto <= partition.cleaned:
            return
        kept = size = 0
        thinned: list[_Thinned] = []
        async for base, data in self._stored(partition, partition.start):
            if base >= upto:
                break
            head = batches.head(data)
            records = batches.decode(base, data)
            forget = head.time < now - TOMBSTONE_MS
            left = [record for record in records if _stays(record, latest, forget)]
            kept += len(left)
            if len(left) < len(records):
                rest = batches.encode_sparse(head.time, head.span, base, left) if left else None
                thinned.append((base, rest))
                size += len(data)
                if size >= _BITE:
                    await self._replace(partition, thinned)
                    thinned, size = [], 0
        await self._replace(partition, thinned)

        def finish(commit: Group) -> None:
            partition.cleaned, partition.kept = upto, kept
            partition.save(commit.batch)

        await self._log.commit.change(finish)

    async def _replace(self, partition: Partition, thinned: list[_Thinned]) -> None:
        def change(commit: Group) -> None:
            for base, data in thinned:
                if base < partition.start:
                    continue  # retention was here meanwhile
                if data is None:
                    commit.batch.delete(partition.key(base))
                else:
                    commit.batch.put(partition.key(base), data)

        await self._log.commit.change(change)

    async def _stored(self, partition: Partition, start: int) -> AsyncIterator[tuple[int, bytes]]:
        """The durable batches from `start` on, letting others run now and then."""
        position = start
        while position < partition.end:
            bite: list[tuple[int, bytes]] = []
            size = 0
            entries = self._log.store.db.iter()
            entries.seek(partition.key(position))
            while entries.valid() and size < _BITE:
                key = entries.key()
                if not key.startswith(partition.prefix) or offset_of(key) >= partition.end:
                    break
                data = entries.value()
                bite.append((offset_of(key), data))
                size += len(data)
                entries.next()
            else:
                self._log.store.check(entries)
            for stored in bite:
                yield stored
            if size < _BITE:
                return
            position = bite[-1][0] + 1
            await asyncio.sleep(0)


def _stays(record: Record, latest: dict[bytes, int], forget: bool) -> bool:
    if record.key is None:
        return True
    if latest.get(record.key, -1) > record.offset:
        return False
    return record.value is not None or not forget
