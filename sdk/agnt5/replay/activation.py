"""One run's code in memory: told what happened, it says what it wants next.

The loop is run to idle after every event, so the same events in the same order at the same times give the same asks in
the same order, live or in a rebuild. An activation that raised `NonDeterminismError` or has ended is of no further use.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agnt5.codec import encode_plain
from agnt5.context import WorkflowContext
from agnt5.errors import NonDeterminismError
from agnt5.function import current_activation
from agnt5.replay import mismatch
from agnt5.replay.ending import deadlock, outcome_of
from agnt5.replay.entries import ASYNCIO_SLEEP, BRANCH, TIMER, Branch, Entry, Open, Operation, TimerEntry, UsedUp
from agnt5.replay.eviction import drop
from agnt5.replay.inplace import DEFAULT_TIMEOUT_MS, InPlace
from agnt5.replay.loop import GONE, DeterministicLoop, StableTask, Timer
from agnt5.replay.pending import wait_for
from agnt5.replay.protocol import (
    Cancelled,
    EntryKey,
    Event,
    Failed,
    InPlaceCall,
    Listener,
    PastEvent,
    Resolved,
    RunInfo,
    SessionView,
    SleepAsk,
    TimedOut,
    Turn,
)
from agnt5.replay.rebuild import Past, Rebuild, Resume
from agnt5.replay.session import Look, SessionGate

if TYPE_CHECKING:
    from agnt5.workflow import Workflow

MAX_PAYLOAD = 1024 * 1024
"""Bytes of JSON that one input, result, state value, event or output may have unless told otherwise."""
_LEFTOVER_CALLBACKS = 100_000


class Replay(Protocol):
    """A history being gone through again; `turn` is what came of the in-place calls that interrupted it."""

    def advance(self, turn: Turn | None = None) -> Turn: ...


class Activation:
    """See the module. `session` answers session reads; `listener` hears progress and log lines while live.

    `max_payload`: bytes of JSON that one input, result, state value, event or output may have."""

    def __init__(
        self,
        workflow: Workflow[Any],
        info: RunInfo,
        input: bytes,
        session: SessionView,
        listener: Listener | None,
        max_payload: int = MAX_PAYLOAD,
    ) -> None:
        self.workflow = workflow
        self.info = info
        self.input = input
        self.session = session
        self.listener = listener
        self.max_payload = max_payload
        self.kept: list[PastEvent] = []
        """After `resume_failed`: the history that the new attempt starts from."""
        self.replayed = 0
        """Events of the history that `rebuild` has gone through whole."""
        self.calls_returned = 0
        """In-place calls whose end the code has been told of, since its start."""
        self.ended = False
        # What operations use:
        self.loop: DeterministicLoop = DeterministicLoop(self, info.run_id)  # type: ignore[abstract]  # what it lacks is refused
        self.now = 0
        self.turn = Turn()
        self.open: dict[str, Open] = {}
        self.unasked: dict[int, Operation[Any]] = {}
        self.gate = SessionGate()
        self.calls: dict[int, InPlace[Any]] = {}
        self.state: dict[str, bytes] = {}
        self.root: asyncio.Task[Any] | None = None
        self.cancel_told = False
        # What replay uses:
        self.past: Past | None = None
        """While an event is replayed: what its activation read and was told."""
        self.replaying = False
        """No log lines, no progress."""
        self.marks: dict[str, bool] = {}
        self.misfit: NonDeterminismError | None = None
        self._replay: Replay | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._branches: list[Branch] = []
        self._prune_at = 64
        self._results: dict[int, tuple[object, BaseException | None]] = {}
        self._tokens = 0

    # ------------------------------------------------------------------ what the driver calls

    def start(self, time: int) -> Turn:
        """Run the code from its beginning until it blocks. `time`: the log's, in milliseconds."""
        self.begin_event(time)
        self.start_code()
        return self.end_event()

    def deliver(self, time: int, event: Event) -> Turn:
        """Tell the code of one event and run it until it blocks again.

        Not while in-place calls are running, except a `Cancelled`: the code stops waiting for them, and what they
        still return is ignored. Its `PastEvent.digest` is then 1 + `calls_returned` as of before, by which replay
        interrupts at the same point. Raises NonDeterminismError for an entry that the code does not wait for."""
        self.begin_event(time)
        self.apply(event, None)
        return self.end_event()

    def finish_call(self, token: int, result: object = None, error: BaseException | None = None) -> Turn:
        """Give an in-place call its result or error, and go on: with the activation, or the rest of a rebuild.

        The code is told in the order of the calls, so that it goes the same way in every replay: a call that returns
        before an earlier one waits for it. A call that was given up meanwhile is ignored."""
        if token not in self.calls:
            return Turn()
        self._results[token] = (result, error)
        if min(self.calls) != token:
            return Turn()
        self.turn = Turn()
        while self.calls and (first := min(self.calls)) in self._results:
            call = self.calls.pop(first)
            value, failure = self._results.pop(first)
            self.calls_returned += 1
            if failure is None:
                call.finish(value)
            else:
                call.fail(failure)
            self.drain()
        turn = self.end_event(drained=True)
        return turn if self._replay is None else self._replay.advance(turn)

    def rebuild(self, history: Sequence[PastEvent], pending: Mapping[str, EntryKey], verify_only: bool = False) -> Turn:
        """Bring fresh code to where the run is, by its history; `pending` is what the run waits for.

        The turn has no asks, since they are known, but it may have in-place calls: the rebuild goes on as
        `finish_call` is called for them, and is over in the first turn that leaves none running. With `verify_only`
        they must not be run: the rebuild ends there, and `replayed` says how many events it got through.
        Raises NonDeterminismError when code and history do not fit."""
        self._replay = Rebuild(self, history, pending)
        turn = self._replay.advance()
        if verify_only and turn.calls:
            self.evict()
        return turn

    def resume_failed(self, time: int, history: Sequence[PastEvent]) -> Turn:
        """Go on from what failed, as a new attempt at clock `time`: results that the code asks for again are kept.

        The turn asks for everything that is open. `kept` is the new attempt's history so far; when the turn has
        in-place calls, both are complete only when `finish_call` has been called for them."""
        self._replay = Resume(self, time, history)
        return self._replay.advance()

    def callable(self, path: str) -> Callable[..., Awaitable[bytes]]:
        """The code of the open step at `path` whose `StepAsk.function` is None: call it with the step's
        FunctionContext and await the encoded result.

        Raises KeyError when no such step is open, and `UsedUp` when it was given a coroutine that has been run: evict
        and rebuild then, which makes a fresh one."""
        entry = self.open[path]
        if not isinstance(entry, Entry) or entry.work is None:
            raise KeyError(f"the entry at {path} is not a step whose code only the run has")
        if not entry.work.usable():
            raise UsedUp(f"the coroutine of step {entry.ask} has been run: rebuild the run for a fresh one")
        return entry.work.run

    def run_state(self) -> dict[str, bytes]:
        """The run's own state, key to JSON."""
        return dict(self.state)

    def evict(self) -> None:
        """Leave memory without a line of the run's code being run. The activation is dead afterwards."""
        if self.loop.closed:
            return
        self.ended = True
        self.replaying = True
        self.listener = None
        self.loop.closed = True
        alive = [task for task in self._tasks if not task.done()]
        for task in alive:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        drop(coro for task in alive if (coro := task.get_coro()) is not None)
        for operation in (*self.open.values(), *self.unasked.values()):
            if isinstance(operation, Entry):
                operation.forget()
        # What a run leaves behind is freed at once, not by the garbage collector: no cycle may remain.
        for branch in self._branches:
            branch.task = None
        self.loop.host = GONE
        self._branches.clear()
        self._tasks.clear()
        self._results.clear()
        self.loop.ready.clear()
        self.open.clear()
        self.unasked.clear()
        self.calls.clear()
        self.gate = SessionGate()
        self.root = None
        self._replay = None

    # ------------------------------------------------------------------ one event

    def begin_event(self, time: int) -> None:
        if self.ended:
            raise RuntimeError(f"run {self.info.run_id} is not in memory any more: make a new activation")
        self.now = time
        self.turn = Turn()

    def start_code(self) -> None:
        """Put the root task into the queue. Input that does not bind is its failure."""
        context = contextvars.Context()
        branch = Branch(self, "")
        context.run(BRANCH.set, branch)
        ctx = WorkflowContext(self)
        context.run(current_activation.set, ctx)
        try:
            arguments = self.workflow.bind(self.input, strict=False, envelope=self.info.envelope)
            body: Any = self.workflow.fn(ctx, **arguments)
        except Exception as error:
            body = _raise(error)
        self.root = branch.task = self._task(body, self.info.run_id, context)
        self._branches.append(branch)

    def apply(self, event: Event, past: PastEvent | None) -> None:
        """Hand one event to whoever waits for it."""
        if isinstance(event, Cancelled):
            self.cancel_told = True
            if self.root is not None:
                self.root.cancel(event.reason)
            return
        entry = self.open.pop(event.path, None)
        if entry is None:
            raise self.does_not_fit(mismatch.unexpected_event(self, event.path, past))
        match event:
            case Resolved():
                entry.resolved(event.value)
            case Failed():
                entry.failed(event.error)
            case TimedOut():
                entry.timed_out()

    def drain(self) -> None:
        """Run the loop to idle. Those who wait for the session are let in one at a time, each run to idle."""
        run_ready = self.loop.run_ready
        run_ready()
        gate = self.gate
        if gate.holder is not None or gate.queue:
            while not self.calls and self.misfit is None and gate.next():
                run_ready()

    def end_event(self, drained: bool = False) -> Turn:
        """The code is blocked: close the turn."""
        if not drained:
            self.drain()
        turn = self.turn
        root = self.root
        if self.misfit is not None:
            raise self.does_not_fit(self.misfit)
        assert root is not None
        if root.done():
            turn.outcome = outcome_of(self, root)
            self._cancel_leftovers()
        elif not self.open and not self.calls:
            turn.outcome = deadlock(self)
        if turn.withdrawn:
            gone = {ask.path for ask in turn.asks}.intersection(turn.withdrawn)
            if gone:  # asked for and given up within the turn: it never was
                turn.asks = [ask for ask in turn.asks if ask.path not in gone]
                turn.withdrawn = [path for path in turn.withdrawn if path not in gone]
        if turn.outcome is not None:
            replay = self._replay
            self.evict()
            self._replay = replay
        return turn

    def replay_is_over(self) -> None:
        """From here on the run is live."""
        self._replay = None
        if not self.ended:
            self.replaying = False

    def does_not_fit(self, error: NonDeterminismError) -> NonDeterminismError:
        """The activation is of no use any more; gives back the error to raise."""
        self.evict()
        return error

    def _cancel_leftovers(self) -> None:
        """The function has returned or raised: cancel the tasks it left behind, as `asyncio.run` does. They may clean
        up, but the run is over: nothing more can be asked for."""
        self.ended = True
        left = [task for task in self._tasks if not task.done()]
        if left:
            for task in left:
                task.cancel()
            self.loop.run_ready(_LEFTOVER_CALLBACKS)

    # ------------------------------------------------------------------ what operations call

    def ask(self, entry: Open) -> None:
        """Tell the driver of an entry, and wait for its end."""
        if self.ended:
            raise RuntimeError("the run has ended: nothing more can be asked for")
        ask = entry.ask
        self.turn.asks.append(ask)
        self.open[ask.path] = entry

    def withdraw(self, path: str) -> None:
        """Nobody waits for the entry any more."""
        if self.open.pop(path, None) is not None:
            self.turn.withdrawn.append(path)

    def session_read(self, path: str, look: Look) -> bytes | None:
        """What `look` sees in the session's state, as recorded or as it is; None when the history does not have it."""
        past = self.past
        data = None if past is None else past.reads.pop(path, None)
        if data is None:
            if past is not None and past.exact:
                self.misfit = self.misfit or mismatch.unread(self, path)
                return None
            data = look(self.session.session_state())
        self.turn.reads.append((path, data))
        return data

    def patched(self, name: str) -> bool:
        past = self.past
        if past is not None:
            recorded = past.marks.pop(name, None)
            if recorded is None:  # passed before the mark existed
                return self.marks.setdefault(name, False)
            self.marks[name] = recorded
        elif name in self.marks:
            return self.marks[name]
        else:
            self.marks[name] = True
        self.turn.marks.append((name, self.marks[name]))
        return self.marks[name]

    def call_in_place(self, call: InPlace[Any]) -> None:
        """Have the driver run it."""
        if self.ended:
            raise RuntimeError("the run has ended: nothing more can be called")
        call.token = self._tokens
        self._tokens += 1
        self.calls[call.token] = call
        timeout_ms = call.function.policy.timeout_ms or DEFAULT_TIMEOUT_MS
        self.turn.calls.append(InPlaceCall(call.token, call.function.name, timeout_ms, call.work))

    def drop_call(self, token: int) -> None:
        """Nobody waits for the in-place call any more: its result will be ignored."""
        self.calls.pop(token, None)
        self._results.pop(token, None)
        self.turn.calls = [call for call in self.turn.calls if call.token != token]

    def checked(self, data: bytes, what: str) -> bytes:
        """`data`, unless it is larger than a payload may be: ValueError."""
        if len(data) > self.max_payload:
            raise ValueError(
                f"{what} has {len(data):,} bytes of JSON; at most {self.max_payload:,} are kept "
                "(AGNT5_MAX_PAYLOAD_BYTES). Store it elsewhere and pass where it is"
            )
        return data

    def encoded(self, value: Any, what: str) -> bytes:
        return self.checked(encode_plain(value), what)

    # ------------------------------------------------------------------ what the loop calls

    def now_ms(self) -> int:
        return self.now

    def add_timer(self, timer: Timer) -> None:
        if self.ended:
            return  # what cleans up after the run's end and waits is dropped
        timer.path = self.branch().take()
        self.ask(TimerEntry(SleepAsk(timer.path, ASYNCIO_SLEEP if timer.is_sleep else TIMER, timer.due), timer))

    def drop_timer(self, timer: Timer) -> None:
        self.withdraw(timer.path)

    def branch(self) -> Branch:
        """The branch whose code is running. Raises RuntimeError outside of this run's tasks."""
        branch = BRANCH.get()
        if branch is None or branch.activation is not self:
            raise RuntimeError(
                "a workflow's ctx, its timers and its tasks work only in the workflow's own code, not in functions, "
                "threads or other runs: call the step from the workflow and pass its result on"
            )
        return branch

    def new_task(self, coro: Any, name: str | None, context: contextvars.Context | None) -> asyncio.Task[Any]:
        """What `create_task` makes: a branch of its own for a coroutine; an operation keeps the path it has."""
        parent = self.branch()
        context = contextvars.copy_context() if context is None else context.copy()
        operation = parent.operation(coro)
        if operation is not None:
            operation.begin()
            return self._task(wait_for(operation), name or "operation", context)
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"create_task takes a coroutine or an operation of ctx, not {coro!r}")
        path = parent.take()
        branch = Branch(self, f"{path}/")
        context.run(BRANCH.set, branch)
        branch.task = task = self._task(coro, name or path, context)
        self._branches.append(branch)
        return task

    def _task(self, coro: Any, name: str, context: contextvars.Context) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = StableTask(coro, loop=self.loop, name=name, context=context)
        tasks = self._tasks
        tasks.append(task)
        if len(tasks) > self._prune_at:
            tasks[:] = [kept for kept in tasks if not kept.done()]
            self._prune_at = 64 + 2 * len(tasks)
        return task

    def report(self, context: dict[str, Any]) -> None:
        """A callback, or a task that nobody waits for, has failed: asyncio would log it, so do we."""
        if self.replaying or self.listener is None:
            return
        error = context.get("exception")
        self.listener.log(
            "error",
            str(context.get("message") or "unhandled error"),
            {} if error is None else {"error": f"{type(error).__name__}: {error}"},
        )


async def _raise(error: BaseException) -> None:
    raise error
