"""One owned partition: applies its journal, does what that asks for, and checkpoints.

The shell around `runs/`. All of it runs on one event loop, and applying is synchronous, so a checkpoint always sees
the state between two records.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from agnt5.function import Function
from agnt5.replay.protocol import StepAsk
from agnt5_engine.partition.appender import Appender, AppenderClosed
from agnt5_engine.partition.calls import Calls
from agnt5_engine.partition.checkpoints import Checkpoints
from agnt5_engine.partition.foresight import Foresight
from agnt5_engine.partition.gates import Gates
from agnt5_engine.partition.live import Live
from agnt5_engine.partition.recovery import PartitionStopped, Place, check_journal, claim, restore
from agnt5_engine.partition.schedules import Schedules
from agnt5_engine.partition.sender import Publish, Sender
from agnt5_engine.partition.steps import Slots, Steps
from agnt5_engine.partition.table import Table
from agnt5_engine.partition.timers import Timers, steady_ms
from agnt5_engine.records.avro import NOT_FOR_US, RecordError, decode_journal
from agnt5_engine.records.journal import Delivered, JournalRecord, TimerFired
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.runs.apply import apply, finish_call, resume_queue
from agnt5_engine.runs.ask import asking
from agnt5_engine.runs.effects import (
    Abandon,
    Append,
    Call,
    DropTimer,
    Effect,
    Execute,
    InterruptCall,
    Moved,
    Rescheduled,
    Send,
    SetTimer,
    StepAlive,
    Superseded,
    Verdict,
)
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.runs.schedules import Schedule
from agnt5_engine.runs.state import Code, PartitionState
from agnt5_engine.transport.base import (
    Ack,
    Batch,
    Checkpointer,
    OffsetGoneError,
    Record,
    RetriableError,
    TopicPartition,
)

log = structlog.stdlib.get_logger(__name__)

#: Records applied, or rows asked for, before the loop has a turn for others.
_AT_ONCE = 200

#: What is on its way when the partition is given up may take so long to arrive.
_SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an owner shares with the rest of its process."""

    code: Code
    function: Callable[[str], Function[Any] | None]
    slots: Slots
    publish: Publish  # (topic or stand-in, messages)
    dispatch: Callable[[Owner, Run, Pending, str], bool]  # a queue's step to its pool; False: run it here
    stopped: Callable[[Owner, BaseException], None]
    dead_letter: Callable[[Place, Record, str], Awaitable[None]]  # a journal record that cannot be decoded
    owner_id: str
    code_version: str
    retention_ms: int
    checkpoint_seconds: float
    schedules: Sequence[Schedule] = ()  # those of all partitions
    gates: Gates | None = None  # None: nothing is limited
    withdraw: Callable[[Owner, str, str, Pending], None] = lambda owner, run_id, path, pending: None  # from its pool
    alive: Callable[[Owner, str, str], None] = lambda owner, run_id, path: None  # a pool has the step in hand
    known: Callable[[TopicPartition, int], None] = lambda journal, next_offset: None  # need not be consumed up to there
    missed: Callable[[TopicPartition], None] = lambda journal: None  # others have written to it: consume it now
    resident: int = 500  # idle live runs kept in memory after a checkpoint


class Owner:
    """Owns one journal partition from `open` to `close`."""

    def __init__(self, place: Place, checkpointer: Checkpointer, around: Surroundings) -> None:
        self.place = place
        self.partition = place.journal.partition
        self._checkpointer = checkpointer
        self._around = around
        self.caught_up = False
        self.closed = False
        self.live = Live()
        self.claim = -1
        self.state: PartitionState
        self.table: Table
        self.timers = Timers(self._timer_fired)
        self._appender = Appender(place.log, place.journal, self._acked, self.fail)
        self._early: dict[int, tuple[int, JournalRecord]] = {}  # acked, but not the next to apply
        self._last_acked = -1
        self._settling = False  # closing, but what is acked still counts

    # ------------------------------------------------------------------ life

    async def open(self) -> int:
        """Recover the partition. Returns the journal offset to consume from. Raises PartitionStopped, FencedError."""
        restored = await restore(self.place, self._checkpointer)
        self.table, marker = restored.table, restored.marker
        await check_journal(self.place, marker)
        self.state = state = PartitionState(
            self.table,
            self._around.code,
            retention_ms=self._around.retention_ms,
            applied=marker.applied if marker else -1,
            claim=marker.claim if marker else -1,
            now=marker.now if marker else 0,
            listener=self.live.listener,
            wake=lambda: asyncio.get_running_loop().call_soon(self._act),
        )
        self.steps = Steps(
            state,
            self._around.slots,
            function=self._around.function,
            now=self.timers.now,
            append=self.append,
            dispatch=lambda run, p, path: self._around.dispatch(self, run, p, path),
            listener=self.live.listener,
            max_payload=self._around.code.max_payload,
            gates=self._around.gates,
        )
        self._calls = Calls(self._call_finished)
        self._foresight = Foresight(state, self.timers, self.place.partitions)
        self._sender = Sender(lambda: state.outbox, self._around.publish, self._delivered)
        self.checkpoints = Checkpoints(
            self,
            self._checkpointer,
            restored,
            seconds=self._around.checkpoint_seconds,
            code_version=self._around.code_version,
            resident=self._around.resident,
        )
        count = self.place.partitions
        schedules = [s for s in self._around.schedules if partition_of(s.key, count) == self.partition]
        self._schedules = Schedules(state, schedules, count, self.append, self.timers.now)
        for key in list(state.sessions):
            resume_queue(state, key)
        self._unclean = marker is not None and not marker.clean
        await self.checkpoints.taken_over()
        self.claim = await claim(self.place, self._around.owner_id, self._around.code_version)
        applied = await self._catch_up(self.claim + 1)
        state.poison_offset = -1  # once parked, only a retry brings its record back
        log.info("partition.recovered", partition=self.partition, applied=applied, claim=self.claim)
        return self.state.applied + 1

    async def _catch_up(self, end: int) -> int:
        """Apply the journal up to our own claim. Of the effects those are kept that rows do not hold: in-place calls,
        and steps that nobody waits for any more, which a pool may have in hand."""
        state, kept, count = self.state, list[Effect](), 0
        while state.applied + 1 < end:
            try:
                async for batch in self.place.log.read(self.place.journal, state.applied + 1, end):
                    for r in batch.records:
                        if self.checkpoints.careful:
                            await self.checkpoints.suspect(r.offset)
                        await self._apply_logged(r)
                        count += 1
                    state.applied = max(state.applied, batch.next_offset - 1)
                    kept += [e for e in state.effects if isinstance(e, Call | InterruptCall | Abandon)]
                    state.effects = []
                    await asyncio.sleep(0)
            except RetriableError as e:
                log.warning("partition.waiting_for_broker", partition=self.partition, error=str(e))
                await asyncio.sleep(0.5)
            except OffsetGoneError as e:
                raise PartitionStopped(f"partition {self.partition}: {e}") from e
        state.effects = [e for e in kept if not (isinstance(e, Abandon) and self._is_pending(e.run_id, e.path))]
        return count

    def _is_pending(self, run_id: str, path: str) -> bool:
        """Whether a step that was given up has been asked for again since."""
        run = self.state.run(run_id)
        return run is not None and path in run.pending

    async def go_live(self) -> None:
        """Ask for everything pending and start checkpointing."""
        self.caught_up = True
        for i, _ in enumerate(asking(self.state, unclean=self._unclean), 1):
            if i % _AT_ONCE == 0:
                self._act()
                await asyncio.sleep(0)
                if self.closed:
                    return
        self._act()
        self._schedules.start()
        self._foresight.start()
        self.checkpoints.start()

    async def close(self, *, save: bool) -> None:
        """Give the partition up: with `save`, after a last checkpoint."""
        if self.closed:
            return
        self.closed = True
        self._settling = save
        self.caught_up = False
        self.timers.close()
        self.live.close(self.partition)
        try:
            if hasattr(self, "steps"):
                self._schedules.close()
                await self._foresight.close()
                await self.steps.close()
                await self._calls.close()
                await self._sender.close()
                if save:
                    await self._settle()
            self._settling = False
            await self._appender.close()
            if hasattr(self, "checkpoints"):
                await self.checkpoints.close(save=save)
            await self._checkpointer.close()
        finally:
            if hasattr(self, "table"):
                self.table.close()

    async def _settle(self) -> None:
        """Let what is on its way into the journal arrive and be applied: a step that has just completed is not done
        again by the next owner."""
        with contextlib.suppress(TimeoutError, AppenderClosed):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._appender.flushed()

    def fail(self, error: BaseException) -> None:
        """Something that cannot be gone on from happened to this partition."""
        self.checkpoints.stop()  # a record may be applied by half
        if not self.closed:
            self._around.stopped(self, error)

    # ------------------------------------------------------------------ records in

    async def consumed(self, batch: Batch) -> None:
        """The log brought records. Most of them are our own and were applied on their acks."""
        if batch.next_offset <= self.state.applied + 1 or self.closed:
            return
        try:
            for i, r in enumerate(batch.records, 1):
                if r.offset > self.state.applied:
                    await self._apply_logged(r)
                    self._apply_early()
                if i % _AT_ONCE == 0:
                    self._act()
                    await asyncio.sleep(0)
                    if self.closed:
                        return
            self._act()
        except Exception as e:  # as on an ack: this partition is taken over anew, the process goes on
            self.fail(e)

    async def _apply_logged(self, logged: Record) -> None:
        offset = logged.offset
        if offset <= self.state.applied:
            return
        try:
            record = self._appender.sent(logged.value) or decode_journal(logged.value or b"")
        except NOT_FOR_US as e:
            raise PartitionStopped(f"partition {self.partition}, journal offset {offset}: {e}") from e
        except RecordError as e:
            await self._around.dead_letter(self.place, logged, str(e))
            self.state.applied = max(self.state.applied, offset)
            return
        if offset > self.state.applied:
            apply(self.state, offset, logged.time, record)

    def _acked(self, ack: Ack, batch: list[JournalRecord]) -> None:
        """Our own records are durable: apply those that are next, keep the others until the log has brought what is
        between."""
        if self.closed and not self._settling:
            return
        state, offset = self.state, ack.offset
        if offset <= max(self._last_acked, self.claim):
            last = max(self._last_acked, self.claim)
            reason = f"the journal said offset {last} before, and now {offset}: was the topic deleted and made anew?"
            self.fail(PartitionStopped(f"partition {self.partition}: {reason}"))
            return
        self._last_acked = offset + len(batch) - 1
        if ack.time > 0:
            # The log said its time between sending and ack.
            self.timers.correct(ack.time - steady_ms(), ack.time - self._appender.sent_at)
        for record in batch:
            if offset == state.applied + 1:
                apply(state, offset, ack.time, record)
            elif offset > state.applied:
                self._early[offset] = (ack.time, record)
            offset += 1
        self._apply_early()
        if self._early:
            self._around.missed(self.place.journal)
        else:
            self._around.known(self.place.journal, state.applied + 1)
        self._act()

    def _apply_early(self) -> None:
        early, state = self._early, self.state
        while early and (found := early.pop(state.applied + 1, None)) is not None:
            apply(state, state.applied + 1, *found)
        if early and min(early) <= state.applied:
            self._early = {offset: found for offset, found in early.items() if offset > state.applied}

    # ------------------------------------------------------------------ effects

    def append(self, run_id: str, record: JournalRecord) -> None:
        """Write a record to this partition's journal."""
        self._appender.append(routing_key(run_id), record)

    @property
    def unacked(self) -> int:
        """Records that were given to the journal and are not acked yet."""
        return self._appender.unacked

    async def flushed(self) -> None:
        """Until all that was appended here so far is durable. Raises AppenderClosed."""
        await self._appender.flushed()

    def _act(self) -> None:
        """Do what applying asked for."""
        state = self.state
        while state.effects and not self.closed:
            effects, state.effects = state.effects, []
            for e in effects:
                match e:  # what comes all the time without fields in the pattern: those take four times as long
                    case Execute():
                        self.steps.execute(*e)
                    case Append():
                        self.append(*e)
                    case Send():
                        self._sender.send(*e)
                    case SetTimer():
                        self.timers.set(*e)
                    case DropTimer():
                        self.timers.drop(*e)
                    case Verdict():
                        self.live.verdict(e)
                    case Moved(run_id):
                        self.live.moved(run_id)
                    case Abandon(run_id, path, p):
                        self.steps.abandon(run_id, path)
                        if isinstance(p.ask, StepAsk) and p.ask.function is not None:
                            self._around.withdraw(self, run_id, path, p)
                    case StepAlive(run_id, path):
                        self._around.alive(self, run_id, path)
                    case Call(key, _, call):
                        self._calls.run(key, call)
                    case InterruptCall(key):
                        self._calls.interrupt(key)
                    case Rescheduled(key, decided):
                        self._schedules.look(key, decided)
                    case Superseded(claim):
                        if self.caught_up and claim != self.claim:
                            self.fail(PartitionStopped(f"partition {self.partition}: another processor claimed it"))
        self.checkpoints.perhaps()

    def _timer_fired(self, run_id: str, path: str) -> None:
        run = self.state.runs.get(run_id)
        if run is not None and path not in run.pending:
            return
        self._appender.append(routing_key(run_id), TimerFired(run_id, path, self.claim))

    def _delivered(self, ids: list[str]) -> None:
        self._appender.append("owner", Delivered(ids, self.claim))

    def _call_finished(self, key: str, token: int, result: object, error: BaseException | None) -> None:
        if not self.closed:
            try:
                finish_call(self.state, key, token, result, error)
                self._act()
            except Exception as e:
                self.fail(e)
