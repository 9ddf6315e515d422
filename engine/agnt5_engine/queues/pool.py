"""A worker's commands: waiting, executing, done. Knows the journal, not where commands come from.

A command's offset may be committed when its result is durable, or when the journal says that this worker has it in
hand: from then on the owner of its run sees to it that somebody executes it. So a long step does not hold up the
commits of those behind it, and does not run twice because its partition has moved to another worker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from agnt5.errors import FatalError, error_info
from agnt5.execute import execute
from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.policies import StepOptions
from agnt5_engine.partition.gates import Gate, Gates
from agnt5_engine.partition.steps import Slots
from agnt5_engine.queues.positions import Positions
from agnt5_engine.queues.results import Results
from agnt5_engine.records.journal import StepBeat, StepCommand, StepFailed, StepSucceeded, StepWithdrawn

log = structlog.stdlib.get_logger(__name__)

#: Commands that wait in this worker at most; more are left to the topic.
READ_AHEAD = 1000
#: Finished commands behind an open one that a death may cause to be executed again, give or take a second's worth.
_GAP = 500
#: Attempts whose commands, come again, are known to be done.
_REMEMBERED = 20_000
#: Seconds between two beats that a function asks for.
_BEAT_AT_MOST = 1.0

Attempt = tuple[str, int, str, int]


class Pool:
    """Executes the commands of one queue. `beat_seconds`: how often it tells of those that take long."""

    def __init__(
        self,
        results: Results,
        slots: Slots,
        gates: Gates,
        *,
        queue: str,
        worker: str,
        function: Callable[[str], Function[Any] | None],
        beat_seconds: float,
        max_payload: int,
    ) -> None:
        self.results = results
        self.slots = slots
        self.gates = gates
        self.queue = queue
        self.worker = worker
        self.function = function
        self.beat_seconds = beat_seconds
        self.max_payload = max_payload
        self.closed = False
        self.waiting = 0
        self._works: dict[tuple[str, str], Work] = {}
        self._done: OrderedDict[Attempt, None] = OrderedDict()
        self._settling: set[Work] = set()  # their results are on their way into the journal

    @property
    def full(self) -> bool:
        """Enough is waiting; read no more for now."""
        return self.waiting >= READ_AHEAD

    @property
    def running(self) -> int:
        return sum(work.task is not None for work in self._works.values())

    def take(self, positions: Positions, offset: int, command: StepCommand | StepWithdrawn) -> None:
        """A record of the queue's topic, in the order of the topic."""
        key = (command.run_id, command.path)
        positions.add(offset)
        if isinstance(command, StepWithdrawn):
            if (work := self._works.get(key)) is not None:
                work.withdraw()
            positions.finish(offset)
            return
        attempt = (command.run_id, command.run_attempt, command.path, command.attempt)
        before = self._works.get(key)
        if attempt in self._done or (before is not None and before.attempt == attempt):
            positions.finish(offset)  # it was sent twice
            return
        if before is not None:
            before.withdraw()
        self._works[key] = work = Work(self, positions, offset, command, attempt)
        work.submit()

    def ask(self, positions: Positions, offset: int, command: StepCommand) -> None:
        """Another worker may have finished this command, or died of it: the owner of its run knows, and sends it anew
        if it is still wanted."""
        positions.add(offset)
        beat = StepBeat(command.run_id, command.path, command.attempt, self.worker, "again")
        self.results.append(beat, lambda: positions.finish(offset))

    def over(self, work: Work, *, remember: bool) -> None:
        """The work needs nothing more."""
        key = (work.command.run_id, work.command.path)
        if self._works.get(key) is work:
            del self._works[key]
        if remember:
            self._done[work.attempt] = None
            while len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)

    def unblock(self, positions: Iterable[Positions]) -> None:
        """Let commits go on where one open command holds up many that are finished."""
        stuck = {id(p): p.done for p in positions if p.gap > _GAP}
        if stuck:
            for work in list(self._works.values()):
                if stuck.get(id(work.positions)) == work.offset:
                    work.hand_over()

    async def release(self, positions: Sequence[Positions]) -> None:
        """These partitions may go to another worker. What runs of them goes on here, and the journal says so; what
        waits is dropped. Returns when the positions may be committed."""
        await self.results.flushed()
        for p in positions:
            works = [w for w in (*self._works.values(), *self._settling) if w.positions is p]
            reached = max((w.offset for w in works if w.task is not None), default=-1)
            reached = max(reached, p.reached)
            for work in works:
                if work.task is not None or work.offset < reached:
                    work.hand_over()
                else:
                    work.drop_silently()
        await self.results.flushed()

    async def close(self, grace: float) -> None:
        """Take no more; what runs may end within `grace` seconds; what does not is left to others."""
        self.closed = True
        tasks = [work.task for work in self._works.values() if work.task is not None]
        if tasks:
            log.info("worker.finishing", steps=len(tasks), seconds=grace)
            await asyncio.wait(tasks, timeout=grace)
        for work in list(self._works.values()):
            if work.task is not None:
                work.leave()
        await self.results.flushed()


class Work:
    """One command in this worker."""

    __slots__ = (
        "_alarm", "_beaten_at", "_pool", "attempt", "begun", "command", "ctx", "ended", "gate", "gone", "offset",
        "positions", "safe", "task",
    )  # fmt: skip

    def __init__(self, pool: Pool, positions: Positions, offset: int, command: StepCommand, attempt: Attempt) -> None:
        self._pool = pool
        self.positions = positions
        self.offset = offset
        self.command = command
        self.attempt = attempt
        self.task: asyncio.Task[None] | None = None
        self.ctx: FunctionContext | None = None
        self.gate: Gate | None = None
        self.begun = False
        self.gone = False  # nobody waits for it, or somebody else executes it
        self.safe = False  # its offset may be committed
        self.ended = False
        self._alarm: asyncio.TimerHandle | None = None
        self._beaten_at = 0.0

    # ------------------------------------------------------------------ its turn

    def submit(self) -> None:
        pool = self._pool
        pool.waiting += 1
        if self.command.alone:
            pool.slots.take_alone(self._announce)
        elif (gate := pool.gates.of(pool.queue, self.command.function)) is not None:
            self.gate = gate
            gate.submit(self)
        else:
            pool.slots.take(self._start)

    def wanted(self) -> bool:
        return not self.gone and not self._pool.closed

    def begin(self) -> None:
        self._pool.slots.take(self._start)

    def drop(self) -> None:
        self._pool.waiting -= 1

    def _announce(self) -> None:
        """Workers have died with it in hand: this one says so before it begins, with nothing beside it."""
        if self.wanted():
            self._beat("alone", self._start)
        else:
            self._start()

    def _start(self) -> None:
        self._pool.waiting -= 1
        if not self.wanted():
            self._give_back()
            return
        self.task = self._pool.slots.task(self._work())
        self._arm()

    def _give_back(self) -> None:
        self._pool.slots.give_back()
        if self.gate is not None:
            self.gate.done()

    # ------------------------------------------------------------------ its execution

    async def _work(self) -> None:
        record: StepSucceeded | StepFailed | StepBeat | None = None
        self.begun = True
        try:
            if self.gone:
                return
            record = await self._outcome()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            self._give_back()
            if record is not None and not self.gone:
                # Remembered at once: what comes again meanwhile is known to be done.
                self.ended = True
                self._pool.over(self, remember=not isinstance(record, StepBeat))
                self._pool._settling.add(self)
                self._pool.results.append(record, self._settled)

    async def _outcome(self) -> StepSucceeded | StepFailed | StepBeat:
        c, pool = self.command, self._pool
        function = pool.function(c.function)
        if function is None:
            return StepBeat(c.run_id, c.path, c.attempt, pool.worker, "unknown")
        options = function.policy if c.options is None else StepOptions.from_json(c.options)
        loop = asyncio.get_running_loop()

        def heartbeat(details: Any) -> None:
            loop.call_soon_threadsafe(self._asked_to_beat)

        try:
            self.ctx = ctx = FunctionContext(
                name=c.name, run_id=c.run_id, session_id=c.session_id, user_id=c.user_id, workflow_name=c.workflow,
                attempt=c.attempt, idempotency_key=f"{c.run_id}/{c.path}", metadata=c.metadata,
                on_heartbeat=heartbeat,
            )  # fmt: skip
            result = await execute(function, c.input, ctx, options, pool.slots.pool)
            if len(result) > pool.max_payload:
                raise FatalError(
                    f"the result of step {c.name!r} has {len(result):,} bytes as JSON; at most {pool.max_payload:,} "
                    "are kept (AGNT5_MAX_PAYLOAD_BYTES). Store it elsewhere and return where"
                )
            return StepSucceeded(c.run_id, c.path, c.attempt, result, None)
        except BaseException as e:
            if self.gone and not isinstance(e, Exception):
                raise
            return self._failed(e, options)

    def _failed(self, e: BaseException, options: StepOptions) -> StepFailed:
        c = self.command
        info = error_info(e, c.name, c.attempt + 1)
        retry_at = None
        if options.retryable(e, c.attempt + 1):
            retry_at = self._pool.results.now() + options.delay_ms(c.attempt + 1, random.random())
        return StepFailed(c.run_id, c.path, c.attempt, info.type, info.message, info.traceback, retry_at, None)

    # ------------------------------------------------------------------ signs of life

    def _arm(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(self._pool.beat_seconds, self._ring)

    def _ring(self) -> None:
        self._beat("working", self._make_safe)
        self._arm()

    def _asked_to_beat(self) -> None:
        """The function says that it is alive (`ctx.heartbeat`)."""
        if self.task is not None and not self.task.done() and time.monotonic() - self._beaten_at > _BEAT_AT_MOST:
            self._beat("working", self._make_safe)

    def _beat(self, state: str, then: Callable[[], None] | None = None) -> None:
        c = self.command
        self._beaten_at = time.monotonic()
        self._pool.results.append(StepBeat(c.run_id, c.path, c.attempt, self._pool.worker, state), then)

    def _settled(self) -> None:
        self._pool._settling.discard(self)
        self._make_safe()

    def _make_safe(self) -> None:
        self.safe = True
        self.positions.finish(self.offset)

    # ------------------------------------------------------------------ giving it up

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        self._stop()
        self._make_safe()

    def hand_over(self) -> None:
        """Make its offset safe to commit: what runs is in hand, what waits is left to others."""
        if self.safe or self.ended:
            return
        if self.task is not None:
            self._beat("working", self._make_safe)
        else:
            self.leave()

    def leave(self) -> None:
        """Let somebody else execute it."""
        self._stop()
        self._beat("left", self._make_safe)

    def drop_silently(self) -> None:
        """Its offset is not committed: whoever has the partition next reads it again."""
        self._stop()

    def _stop(self) -> None:
        self.gone = True
        self._pool.over(self, remember=False)
        if self.ctx is not None:
            self.ctx.cancelled = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self.task is not None and self.begun:  # a task that is cancelled before it begins never does
            self.task.cancel()
