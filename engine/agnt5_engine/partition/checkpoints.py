"""Checkpoints of one partition: every interval, or sooner when much has changed.

One fenced transaction holds the changed rows, the marker with the applied journal offset, and the group's offset;
then one write batch brings the local table to the same point. A transaction whose fate is unknown is written again,
same rows: it says the same thing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Protocol

import structlog

from agnt5_engine.partition.recovery import Place, Restored
from agnt5_engine.partition.table import Table, marker_now
from agnt5_engine.records.avro import encode
from agnt5_engine.records.rows import MarkerRow
from agnt5_engine.runs import table
from agnt5_engine.runs.checkpoint import Row, changes, collect, forget_clean
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.transport.base import Checkpointer, Message, RetriableError

log = structlog.stdlib.get_logger(__name__)

#: What the last checkpoint may take when the partition is given up: somebody waits for it.
_LAST_SECONDS = 5.0

#: Changed runs after which a checkpoint does not wait for its time.
_MANY = 4000

#: So many take-overs without an ordinary checkpoint are put down to chance; at the next one, records are applied one at
#: a time.
_CARELESS = 2
#: Owners that may die applying one announced record before its run is parked: one may have been killed from outside.
_DEATHS = 2


class Owned(Protocol):
    """What a checkpoint needs of the partition's owner."""

    place: Place
    partition: int
    state: PartitionState
    table: Table
    caught_up: bool

    def fail(self, error: BaseException) -> None: ...


class Checkpoints:
    """Writes them, one at a time."""

    def __init__(
        self,
        owner: Owned,
        checkpointer: Checkpointer,
        restored: Restored,
        *,
        seconds: float,
        code_version: str,
        resident: int,
    ) -> None:
        """`seconds` between them; `resident`: idle live runs that stay in memory after one."""
        self._owner = owner
        self._checkpointer = checkpointer
        self._changelog_offset = restored.changelog_offset
        self._seconds = seconds
        self._code_version = code_version
        self._resident = resident
        self._written = restored.marker.applied if restored.marker is not None else -2
        before = restored.marker
        self._lineage = (before.lineage if before is not None else "") or uuid.uuid4().hex
        self._takeovers = 1 if before is None or before.clean else before.takeovers + 1
        self._suspect = before.suspect if before is not None and not before.clean else None
        self._deaths = before.deaths + 1 if self._suspect is not None and before is not None else 0
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unwritten: tuple[list[Row], MarkerRow] | None = None
        self._lock = asyncio.Lock()
        self._stopped = False

    # ------------------------------------------------------------------ at take-over

    @property
    def careful(self) -> bool:
        """So many owners have died without a checkpoint that records are applied one at a time, announced."""
        return self._takeovers > _CARELESS

    async def taken_over(self) -> None:
        """Write down that the partition was taken over: whoever comes next can count."""
        state = self._owner.state
        if self._deaths >= _DEATHS and self._suspect is not None:
            state.poison_offset = self._suspect
        self._unwritten = ([], self._marker(state.applied, clean=False, suspect=self._suspect, deaths=self._deaths))
        await self.write()

    async def suspect(self, offset: int) -> None:
        """Checkpoint, and announce that the record at `offset` is applied next."""
        deaths = self._deaths if offset == self._suspect else 0
        self._suspect, self._deaths = offset, deaths
        state = self._owner.state
        rows = collect(state)
        self._unwritten = (rows, self._marker(state.applied, clean=False, suspect=offset, deaths=deaths))
        await self.write()

    def _marker(self, applied: int, *, clean: bool, suspect: int | None = None, deaths: int = 0) -> MarkerRow:
        owner, state = self._owner, self._owner.state
        return MarkerRow(
            applied=applied,
            claim=state.claim,
            now=state.now,
            cluster_id=owner.place.cluster_id,
            partitions=owner.place.partitions,
            clean=clean,
            takeovers=0 if owner.caught_up or clean else self._takeovers,
            suspect=suspect,
            deaths=deaths,
            code_version=self._code_version,
            lineage=self._lineage,
        )

    # ------------------------------------------------------------------ while it is owned

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Write no more of them, not even a last one; one that is on its way holds what was before."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    def perhaps(self) -> None:
        """Called after applying: ask for an early one when much has changed."""
        if len(self._owner.state.dirty_runs) >= _MANY:
            self._soon.set()

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        await self._soon.wait()
                self._soon.clear()
                await self.write()
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self._owner.fail(e)

    async def write(self, *, clean: bool = False) -> None:
        """Bring changelog, group offset and local table to what is applied now. Raises FencedError."""
        async with self._lock:
            delay = 0.2
            while self._unwritten is not None or self._owner.state.applied != self._written or clean:
                try:
                    await self._write(clean)
                    break
                except RetriableError as e:
                    if clean:
                        raise
                    log.warning("checkpoint.retry", partition=self._owner.partition, error=str(e))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 5)
            # Also when nothing was written: whoever only reads brings runs into memory, too.
            forget_clean(self._owner.state, keep=self._resident)

    async def _write(self, clean: bool) -> None:
        owner, place = self._owner, self._owner.place
        state = owner.state
        if self._unwritten is None or clean:
            older = self._unwritten[0] if self._unwritten is not None else []
            marker = self._marker(state.applied, clean=clean)
            self._unwritten = (older + changes(state), marker)
        rows, marker = self._unwritten
        cut = owner.table.cut
        primary = [Message(*kept) for r in rows if r.key[:1] not in table.DERIVED_FAMILIES for kept in cut(r)]
        head = Row(table.MARKER, encode(marker))
        self._changelog_offset = await self._checkpointer.write(
            [*primary, Message(head.key, head.value)], place.journal, marker.applied + 1
        )
        owner.table.write([*rows, head], marker_now(place.cluster_id, self._changelog_offset))
        self._written, self._unwritten = marker.applied, None

    async def close(self, *, save: bool) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if save and not self._stopped:
            try:
                async with asyncio.timeout(_LAST_SECONDS):
                    await self.write(clean=True)
            except Exception as e:
                # Whatever it is, the journal has it all; the next owner applies a longer tail.
                error = str(e) or f"not done within {_LAST_SECONDS:.0f} s"
                log.warning("checkpoint.last_failed", partition=self._owner.partition, error=error)
