"""Taking a partition over: fence, restore the table, claim, and apply the journal to its end.

The changelog's marker says up to which journal offset C its rows count. The journal from C + 1 on is the write-ahead
log of everything since. Where either is gone, the partition stops with an error that says what to do; nothing is
skipped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from agnt5_engine.partition.table import LocalMarker, Table, marker_now
from agnt5_engine.records.avro import NOT_FOR_US, decode, encode, is_a
from agnt5_engine.records.journal import OwnerClaimed
from agnt5_engine.records.rows import MarkerRow
from agnt5_engine.runs.table import MARKER
from agnt5_engine.transport.base import Checkpointer, Log, Message, RetriableError, TopicPartition

log = structlog.stdlib.get_logger(__name__)

#: A local table that has not followed the changelog for this long is not trusted: compaction may have dropped
#: tombstones that it never saw (`delete.retention.ms` is 24 h by default). Nor is one from the future: a clock was set.
_STALE_SECONDS = 12 * 3600
#: How often a table that nothing new comes for is noted to be up to date.
_SEEN_SECONDS = 3600
_WRITE_ROWS = 4000
#: So many changelog offsets are worth opening the table for filling: it takes some 50 ms.
_MANY_ROWS = 20_000


class PartitionStopped(Exception):
    """This partition cannot be owned as things are. The message says what is wrong and what to do."""


class Restored(NamedTuple):
    table: Table
    marker: MarkerRow | None  # None: a partition that nobody has checkpointed yet
    changelog_offset: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's parts are."""

    log: Log
    journal: TopicPartition
    changelog: TopicPartition
    cluster_id: str
    folder: Path
    partitions: int


async def restore(place: Place, checkpointer: Checkpointer) -> Restored:
    """Fence earlier owners, then bring the local table to the end of the changelog."""
    await _patiently(checkpointer.open, place.journal)
    table = Table(place.folder)
    try:
        began = time.perf_counter()
        position, count = await follow(place, table)
        if count:
            seconds = round(time.perf_counter() - began, 3)
            log.info("table.restored", partition=place.journal.partition, rows=count, seconds=seconds)
        data = table.get(MARKER)
        marker = decode(data) if data is not None else None
    except NOT_FOR_US as e:
        table.close()
        raise PartitionStopped(f"partition {place.journal.partition}: its state cannot be read: {e}") from e
    except BaseException:
        table.close()
        raise
    return Restored(table, marker, position)


async def follow(place: Place, table: Table) -> tuple[int, int]:
    """Bring the table to the end of the changelog. Returns that offset, and how many rows it took."""
    start, end = await place.log.bounds(place.changelog)
    local, before = table.marker(), _lineage(table)
    if local is not None and not _usable(local, place.cluster_id, start, end):
        log.info("table.discarded", partition=place.journal.partition, reason="not of this changelog, or too old")
        table.clear()
        local = None
    if local is None:
        return end, await _fill(place, table, start, end)
    count = await _fill(place, table, local.changelog_offset, end)
    if count and _lineage(table) != before:
        log.info("table.discarded", partition=place.journal.partition, reason="the changelog was made anew")
        table.clear()
        count = await _fill(place, table, start, end)
    elif not count and time.time() - local.written_at > _SEEN_SECONDS:
        table.write((), marker_now(place.cluster_id, end))
    return end, count


def _lineage(table: Table) -> str | None:
    data = table.get(MARKER)
    lineage: str | None = decode(data).lineage if data is not None else None
    return lineage


async def _fill(place: Place, table: Table, start: int, end: int) -> int:
    """Bring the table from one changelog offset to another. Returns how many rows that took."""
    if start >= end:
        return 0
    rows, count, many = table.restoring(), 0, end - start > _MANY_ROWS
    if many:
        table.begin_filling()
    writing: asyncio.Task[None] | None = None
    try:
        async for batch in place.log.read(place.changelog, start, end):
            rows.take(batch.records)
            count += len(batch.records)
            if len(rows) >= _WRITE_ROWS or batch.next_offset >= end:
                chunk = table.batch(rows, marker_now(place.cluster_id, batch.next_offset)) if many else None
                if writing is not None:
                    await asyncio.wait([writing])
                    writing.result()
                if chunk is None:  # what is read for it has to be there
                    chunk = table.batch(rows, marker_now(place.cluster_id, batch.next_offset))
                writing = asyncio.create_task(asyncio.to_thread(table.put, chunk))
    finally:
        if writing is not None:
            await asyncio.wait([writing])  # also when we are cancelled: the thread is not
        if many:
            await asyncio.to_thread(table.end_filling)
    if writing is not None:
        writing.result()
    if rows.forgotten:
        await asyncio.to_thread(table.forget_created, rows.forgotten)
    return count


def _usable(local: LocalMarker, cluster_id: str, start: int, end: int) -> bool:
    return (
        local.cluster_id == cluster_id
        and start <= local.changelog_offset <= end
        and abs(time.time() - local.written_at) < _STALE_SECONDS
    )


async def check_journal(place: Place, marker: MarkerRow | None) -> None:
    """Refuse a journal that does not follow from the checkpoint. Raises PartitionStopped."""
    start, end = await place.log.bounds(place.journal)
    p = place.journal.partition
    applied = marker.applied if marker is not None else -1
    if marker is not None and marker.cluster_id != place.cluster_id:
        raise PartitionStopped(
            f"partition {p}: its state was written on Kafka cluster {marker.cluster_id}, this is {place.cluster_id}. "
            "Point AGNT5_BROKER at the old cluster, or choose another AGNT5_TOPIC_PREFIX to begin anew"
        )
    if marker is not None and marker.partitions != place.partitions:
        raise PartitionStopped(
            f"partition {p}: its state was written with {marker.partitions} partitions, {place.journal.topic} has "
            f"{place.partitions}. Runs would be looked for in the wrong place: partitions of engine topics cannot be "
            "added later; recreate the topic with the old number, or use another AGNT5_TOPIC_PREFIX"
        )
    if start > applied + 1:
        raise PartitionStopped(
            f"partition {p}: the journal {place.journal.topic} begins at offset {start}, but offsets from "
            f"{applied + 1} on have not been applied: they were deleted (retention too short?). Runs may be lost. "
            "Restore the topic, or accept the loss by deleting the partition's changelog and journal together"
        )
    if marker is not None and start <= marker.claim < end and not await _is_claim(place, marker.claim):
        raise PartitionStopped(
            f"partition {p}: the journal {place.journal.topic} is not the one that the state was made from: its record "
            f"at offset {marker.claim} is another. Was the topic deleted and made anew? Restore it, or delete its "
            "changelog too"
        )
    if end < applied + 1:
        raise PartitionStopped(
            f"partition {p}: the journal {place.journal.topic} ends at offset {end}, but the state covers {applied}: "
            "records were lost (unclean leader election, or a recreated topic?). Restore the topic, or delete its "
            "changelog too"
        )


async def _is_claim(place: Place, offset: int) -> bool:
    async for batch in place.log.read(place.journal, offset, offset + 1):
        for record in batch.records:
            return is_a(record.value or b"", OwnerClaimed)
    return False


async def claim(place: Place, owner: str, code_version: str) -> int:
    """Append OwnerClaimed; its offset is the claim."""
    record = encode(OwnerClaimed(owner, code_version))
    message = Message(b"owner", record)
    while True:
        try:
            return (await place.log.append(place.journal, [message])).offset
        except RetriableError as e:
            log.warning("claim.retry", partition=place.journal.partition, error=str(e))
            await asyncio.sleep(0.5)


async def _patiently(open_: Callable[[], Awaitable[None]], journal: TopicPartition) -> None:
    delay = 0.2
    while True:
        try:
            await open_()
            return
        except RetriableError as e:
            log.warning("partition.waiting_for_broker", partition=journal.partition, error=str(e))
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5)
