"""Executes the steps of one partition's runs in this process: async functions on its loop, plain ones in threads.

Nothing here decides anything. What came of an attempt goes into the journal, and applying that record decides.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from agnt5.errors import FatalError, error_info
from agnt5.execute import execute
from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.policies import StepOptions
from agnt5.replay.activation import Activation
from agnt5.replay.entries import UsedUp
from agnt5.replay.protocol import Listener, StepAsk
from agnt5.threads import StepThreads
from agnt5_engine.partition.gates import Gate, Gates
from agnt5_engine.partition.stopping import stopped
from agnt5_engine.records.journal import (
    JournalRecord,
    RunParked,
    StepFailed,
    StepIsolated,
    StepSucceeded,
    make_step_succeeded,
)
from agnt5_engine.runs.apply import revive
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.runs.state import PartitionState

_LOCAL = StepOptions()
#: Between looks whether a run's code can be had.
_REVIVE_SECONDS = 0.05
#: Unclean take-overs that found the step pending, from which on it runs with nothing beside it.
_ISOLATED_FROM = 3
#: Deaths while alone that park its run.
_ISOLATED_DEATHS = 2


class Slots:
    """How many steps the process runs at once, over all its partitions; and the threads for plain functions."""

    def __init__(self, concurrency: int, threads: int) -> None:
        self.limit = concurrency
        self.running = 0
        self.waiting: deque[Callable[[], None]] = deque()
        self.lonely: deque[Callable[[], None]] = deque()
        self.alone = False  # one of the lonely has the process to itself
        self._context = copy_context()
        self.pool = StepThreads(threads)

    def take(self, start: Callable[[], None]) -> None:
        """Call `start` when a slot is free."""
        if self.running < self.limit and not self.lonely and not self.alone:
            self.running += 1
            start()
        else:
            self.waiting.append(start)

    def take_alone(self, start: Callable[[], None]) -> None:
        """Call `start` when nothing else runs; nothing else starts before it is given back."""
        self.lonely.append(start)
        self._next()

    def task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do the work of a slot. It is often started by the work that had the slot before, whose context variables are
        none of its business."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def give_back(self) -> None:
        self.running -= 1
        self.alone = False
        self._next()

    def _next(self) -> None:
        if self.alone:
            return
        if self.lonely:
            if self.running == 0:
                self.alone = True
                self.running += 1
                self.lonely.popleft()()
            return
        while self.waiting and self.running < self.limit and not self.lonely and not self.alone:
            self.running += 1
            self.waiting.popleft()()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class Steps:
    """The steps in flight of one partition."""

    def __init__(
        self,
        state: PartitionState,
        slots: Slots,
        *,
        function: Callable[[str], Function[Any] | None],
        now: Callable[[], int],
        append: Callable[[str, JournalRecord], None],
        dispatch: Callable[[Run, Pending, str], bool],
        listener: Callable[[str], Listener],
        max_payload: int,
        gates: Gates | None = None,
    ) -> None:
        self._state = state
        self._slots = slots
        self._function = function
        self._now = now
        self._append = append
        self._dispatch = dispatch  # hands a step of a queue to its pool; False: run it here
        self._listener = listener
        self._max_payload = max_payload
        self._gates = gates
        self._running: dict[tuple[str, str], _Attempt] = {}
        self._later: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._closed = False

    def execute(self, run_id: str, path: str) -> None:
        """Start the pending step, unless it runs already or its retry is not due."""
        key = (run_id, path)
        if (waiting := self._running.get(key)) is not None:
            waiting.announced()
            return
        if self._closed:
            return
        run = self._state.run(run_id)
        if run is None or run.status == "paused" or (p := run.pending.get(path)) is None:
            return
        assert isinstance(p.ask, StepAsk)
        if p.retry_at is not None and (wait := p.retry_at - self._now()) > 0:
            self._wait(key, wait / 1000)
            return
        function, options, gate = None, _LOCAL, None
        if p.ask.function is None:
            if not revive(self._state, run):
                self._wait(key, _REVIVE_SECONDS)  # its session is busy: after that
                return
        elif (function := self._function(p.ask.function)) is not None:
            options = function.policy
        if p.ask.options is not None:
            options = StepOptions.from_json(p.ask.options)
        if options.queue is not None and self._dispatch(run, p, path):
            return
        alone = p.restarts >= _ISOLATED_FROM  # a step that has the process to itself needs no limit
        if self._gates is not None and function is not None and not alone:
            gate = self._gates.of(options.queue, function.name)
        attempt = _Attempt(self, run, p.ask, p.attempt, function, options, gate)
        self._running[key] = attempt
        run.executing += 1
        if alone:
            self._slots.take_alone(attempt.announce)
        elif gate is not None:
            gate.submit(attempt)
        else:
            self._slots.take(attempt.start)

    def _wait(self, key: tuple[str, str], seconds: float) -> None:
        if (old := self._later.pop(key, None)) is not None:
            old.cancel()

        def now() -> None:
            self._later.pop(key, None)
            self.execute(*key)

        self._later[key] = asyncio.get_running_loop().call_later(seconds, now)

    def abandon(self, run_id: str, path: str) -> None:
        """Nobody waits for it any more: cancel what runs, record nothing."""
        key = (run_id, path)
        if (later := self._later.pop(key, None)) is not None:
            later.cancel()
        if (attempt := self._running.pop(key, None)) is not None:
            attempt.abandon()

    def done(self, attempt: _Attempt, record: StepSucceeded | StepFailed | RunParked | None) -> None:
        attempt.run.executing -= 1
        key = (attempt.run.run_id, attempt.ask.path)
        if self._running.get(key) is attempt:
            del self._running[key]
            if record is not None and not self._closed:
                self._append(record.run_id, record)
            p = attempt.run.pending.get(attempt.ask.path)
            if p is not None and p.attempt != attempt.number:  # asked for while this one ran
                self.execute(*key)
        self._slots.give_back()
        if attempt.gate is not None:
            attempt.gate.done()

    def in_flight(self) -> int:
        return len(self._running)

    def attempt_of(self, run_id: str, path: str) -> _Attempt | None:
        return self._running.get((run_id, path))

    async def close(self) -> None:
        """Cancel everything; nothing of it is recorded."""
        self._closed = True
        for handle in self._later.values():
            handle.cancel()
        tasks = [a.task for a in self._running.values() if a.task is not None]
        for attempt in list(self._running.values()):
            attempt.abandon()
        await stopped(tasks, "steps")


class _Attempt:
    """One attempt of one step."""

    __slots__ = ("ask", "ctx", "function", "gate", "number", "options", "owner", "run", "task", "waits")

    def __init__(
        self,
        owner: Steps,
        run: Run,
        ask: StepAsk,
        number: int,
        function: Function[Any] | None,
        options: StepOptions,
        gate: Gate | None,
    ) -> None:
        self.owner = owner
        self.run = run
        self.ask = ask
        self.number = number
        self.function = function
        self.options = options
        self.gate = gate
        self.task: asyncio.Task[None] | None = None
        self.ctx: FunctionContext | None = None
        self.waits = False  # for StepIsolated to be applied

    # -- its turn at the gate

    def wanted(self) -> bool:
        return not self.owner._closed and self.owner.attempt_of(self.run.run_id, self.ask.path) is self

    def begin(self) -> None:
        self.owner._slots.take(self.start)

    def drop(self) -> None:
        self.run.executing -= 1

    # -- its life

    def announce(self) -> None:
        """It was pending when three owners died: it has the process to itself, and the log says so before it begins."""
        run, path, claim = self.run, self.ask.path, self.owner._state.claim
        p = run.pending.get(path)
        if p is None or self.owner._closed or self.owner.attempt_of(run.run_id, path) is not self:
            self.owner.done(self, None)
        elif p.isolated >= _ISOLATED_DEATHS:
            detail = f"step {path} ({self.ask.name}) killed its processor {p.isolated} times while it ran alone"
            self.owner.done(self, RunParked(run.run_id, path, "poison", detail, claim))
        else:
            self.waits = True
            self.owner._append(run.run_id, StepIsolated(run.run_id, path, True, claim))

    def announced(self) -> None:
        """The announcement is applied: begin."""
        if self.waits:
            self.waits = False
            self.start()

    def start(self) -> None:
        self.task = self.owner._slots.task(self._work())

    def abandon(self) -> None:
        if self.waits:
            self.waits = False
            self.owner.done(self, None)
        if self.ctx is not None and self.task is not None:  # a task that is cancelled before it begins never does
            self.ctx.cancelled = True
            self.task.cancel()

    async def _work(self) -> None:
        if not self.wanted():
            self.owner.done(self, None)
            return
        record: StepSucceeded | StepFailed | RunParked | None = None
        run, ask, owner = self.run, self.ask, self.owner
        claim = owner._state.claim
        try:
            listener = owner._listener(run.run_id)
            self.ctx = ctx = FunctionContext(
                name=ask.name, run_id=run.run_id, session_id=run.session, user_id=run.user, workflow_name=run.workflow,
                attempt=self.number, idempotency_key=f"{run.run_id}/{ask.path}", metadata=run.metadata,
                on_progress=listener.progress, on_log=listener.log,
            )  # fmt: skip
            result: bytes | None
            if ask.function is None:
                result = await self._run_local(ctx)
                if result is None:
                    return
            elif self.function is not None:
                result = await execute(self.function, ask.input, ctx, self.options, owner._slots.pool)
            else:
                detail = f"step {ask.path} needs function {ask.function!r}, which this processor's code does not have"
                record = RunParked(run.run_id, ask.path, "unknown_function", detail, claim)
                return
            if len(result) > owner._max_payload:
                raise FatalError(
                    f"the result of step {ask.name!r} has {len(result):,} bytes as JSON; at most "
                    f"{owner._max_payload:,} are kept (AGNT5_MAX_PAYLOAD_BYTES). Store it elsewhere and return where"
                )
            record = make_step_succeeded(run.run_id, ask.path, self.number, result, claim)
        except asyncio.CancelledError as e:
            if owner._running.get((run.run_id, ask.path)) is not self or owner._closed:
                raise
            record = self._failed(e, claim)
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit) and owner._closed:
                raise
            record = self._failed(e, claim)
        finally:
            owner.done(self, record)

    async def _run_local(self, ctx: FunctionContext) -> bytes | None:
        """A step whose code only the run itself has. None: the run is not to go on."""
        run, path = self.run, self.ask.path
        if (activation := await self._revived()) is None:
            return None
        try:
            return await activation.callable(path)(ctx)
        except UsedUp:
            # It was given a coroutine, and a coroutine runs once: only the code itself makes another.
            drop_activation(run)
            activation = await self._revived()
            return None if activation is None else await activation.callable(path)(ctx)

    async def _revived(self) -> Activation | None:
        """The run's code, as soon as it knows the step; None when the run was parked or waits for the step no more."""
        run = self.run
        while not revive(self.owner._state, run):
            if run.status == "paused" or self.ask.path not in run.pending:
                return None
            await asyncio.sleep(_REVIVE_SECONDS)
        return run.activation if self.ask.path in run.pending else None

    def _failed(self, e: BaseException, claim: int) -> StepFailed:
        info = error_info(e, self.ask.name, self.number + 1)
        retry_at, options = None, self.options
        if options.retryable(e, self.number + 1):
            retry_at = self.owner._now() + options.delay_ms(self.number + 1, random.random())
        return StepFailed(
            self.run.run_id, self.ask.path, self.number, info.type, info.message, info.traceback, retry_at, claim
        )
