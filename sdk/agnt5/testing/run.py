"""One run in a test: its activation, what it waits for, and its history."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from agnt5.client.models import ErrorDetail, Run, Trigger, Waiting, at
from agnt5.codec import decode_plain, encode_plain
from agnt5.errors import NonDeterminismError, StepTimeout, error_info, is_final, short_type
from agnt5.execute import bounded, execute
from agnt5.functioncontext import FunctionContext
from agnt5.policies import StepOptions
from agnt5.registry import find_function
from agnt5.replay.activation import Activation
from agnt5.replay.entries import UsedUp
from agnt5.replay.history import History
from agnt5.replay.protocol import (
    Ask,
    Cancelled,
    ChildAsk,
    Completed,
    EmitAsk,
    EntryKey,
    Errored,
    ErrorInfo,
    Event,
    Failed,
    InPlaceCall,
    PastEvent,
    Resolved,
    RunInfo,
    SignalAsk,
    SleepAsk,
    StepAsk,
    Stopped,
    TellChildAsk,
    TimedOut,
    Turn,
    UserAsk,
    UserStateAsk,
    WriteAsk,
    ask_digest,
    ask_key,
)
from agnt5.replay.steps import LocalCall
from agnt5.wholes import too_many_signals

if TYPE_CHECKING:
    from agnt5.testing.environment import TestEnvironment
    from agnt5.workflow import Workflow


class Retry(NamedTuple):
    """The wait before a step's next attempt is over."""

    path: str
    attempt: int


class GoOn(NamedTuple):
    """A later attempt of its parent asks for a child that did not complete."""


class Signalled(NamedTuple):
    """A signal that came may end the wait at `path`. It is kept until then: the wait may be over before its turn."""

    path: str


Happening: TypeAlias = Event | Retry | GoOn | Signalled | None
"""What a run is given, in its turn; None: its start."""


class TestRun:
    """Applies one event after the other to one run; everything it asks for is done by the environment."""

    __test__ = False

    def __init__(
        self,
        env: TestEnvironment,
        workflow: Workflow[Any],
        info: RunInfo,
        input: bytes,
        parent: tuple[TestRun, str] | None = None,
    ) -> None:
        self.env = env
        self.workflow = workflow
        self.info = info
        self.input = input
        self.parents = [] if parent is None else [parent]
        self.status = "running"
        self.output: bytes | None = None
        self.error: ErrorInfo | None = None
        self.created_at = env.now_ms
        self.finished_at: int | None = None
        self.deadline: int | None = None
        self.open: dict[str, Ask] = {}
        self.events: list[PastEvent] = []
        self.signals: list[tuple[str, bytes]] = []
        self.progress_told: list[tuple[float | None, str | None]] = []
        self.logged: list[tuple[str, str, dict[str, Any]]] = []
        self.activation = self._activation()
        self.final_state: dict[str, bytes] = {}
        self.outcome: Completed | Errored | Stopped | None = None
        self._children: dict[str, TestRun] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._record: PastEvent | None = None
        self._read: list[tuple[str, bytes]] = []
        self._marked: list[tuple[str, bool]] = []
        self._resuming = False
        self._cancelled: str | None = None

    def _activation(self) -> Activation:
        return Activation(self.workflow, self.info, self.input, self, self, self.env.max_payload)

    # -- what the activation calls

    def session_state(self) -> dict[str, bytes]:
        return self.env.session(self.info.session_id)

    def progress(self, fraction: float | None, message: str | None) -> None:
        self.progress_told.append((fraction, message))

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self.logged.append((level, message, fields))

    # -- events

    @property
    def ended(self) -> bool:
        return self.status != "running"

    @property
    def in_place(self) -> bool:
        """In the middle of in-place calls: nothing else is delivered in its session."""
        return bool(self._calls)

    def take(self, event: Happening) -> None:
        """Apply one event; one that nobody waits for any more is ignored."""
        if isinstance(event, GoOn) and self.ended:
            self._go_on()
        if self.ended or isinstance(event, GoOn):
            return
        if isinstance(event, Retry):
            ask = self.open.get(event.path)
            if isinstance(ask, StepAsk):
                self._start(event.path, self._step(ask, event.attempt))
            return
        if isinstance(event, Signalled):
            event = self._signal_for(event.path)
            if event is None:
                return
        now = self.env.now_ms
        key, digest = EntryKey("", "", ""), 0
        if isinstance(event, Cancelled):
            if event.reason == "timeout" and self.deadline is not None and now < self.deadline:
                return  # that of an earlier attempt
            self._cancelled = event.reason
            if self._calls:
                digest = 1 + self.activation.calls_returned
                self._close()
        elif event is not None:
            ask = self.open.pop(event.path, None)
            if ask is None:
                return
            key, digest = ask_key(ask), ask_digest(ask)
        self._record = PastEvent(now, event, key.kind, key.name, digest, (), ())
        if event is None:
            self._handle(self.activation.start(now))
        else:
            self._handle(self.activation.deliver(now, event))

    def _handle(self, turn: Turn) -> None:
        self._read += turn.reads
        self._marked += turn.marks
        for path in turn.withdrawn:
            self._withdraw(path)
        for ask in turn.asks:
            self.open[ask.path] = ask
        for ask in turn.asks:
            self._do(ask)
        for call in turn.calls:
            self._calls[call.token] = asyncio.ensure_future(self._call(call))
        if turn.outcome is not None:
            for task in self._calls.values():
                task.cancel()
            self._calls.clear()
        if not self._calls:
            self._close()
        if turn.outcome is not None:
            self._end(turn.outcome)

    def _close(self) -> None:
        """The activation is over: it becomes a part of the history."""
        for task in self._calls.values():  # interrupted
            task.cancel()
        self._calls.clear()
        if self._resuming:
            self._resuming = False
            self.events = list(self.activation.kept)
        elif self._record is not None:
            self.events.append(self._record._replace(reads=tuple(self._read), marks=tuple(self._marked)))
        self._record = None
        self._read, self._marked = [], []

    def _end(self, outcome: Completed | Errored | Stopped) -> None:
        self.final_state = dict(self.activation.state)
        self._stop_work()
        if isinstance(outcome, Errored) and self._again(outcome.error):
            return
        self.outcome = outcome
        self.finished_at = self.env.now_ms
        match outcome:
            case Completed(output=output):
                self.status, self.output = "completed", output
            case Errored(error=error):
                self.status, self.error = "failed", error
            case Stopped():
                self.status = "timeout" if self._cancelled == "timeout" else "cancelled"
                if self.status == "timeout":
                    self.error = ErrorInfo("TimeoutError", "the run's own timeout passed")
                for path, child in self._children.items():
                    ask = self.open.get(path)
                    if isinstance(ask, ChildAsk) and not ask.detached:
                        self.env.post(child, Cancelled("cancel"))
        self.open.clear()
        for parent, path in self.parents:
            self._tell_parent(parent, path)

    def asked_again(self, parent: TestRun, path: str) -> None:
        """By a later attempt of its parent, for which what did not complete goes on from what failed; or by another
        run that gave the same ID."""
        if (parent, path) not in self.parents:
            self.parents.append((parent, path))
        if self.ended and self.status != "completed" and parent.info.attempt:
            self.env.post(self, GoOn())
        elif self.ended:
            self._tell_parent(parent, path)

    def _tell_parent(self, parent: TestRun, path: str) -> None:
        if self.output is not None:
            self.env.post(parent, Resolved(path, self.output))
            return
        error = self.error or ErrorInfo("asyncio.CancelledError", f"child run {self.info.run_id} is cancelled")
        self.env.post(parent, Failed(path, error._replace(step=self.workflow.name)))

    def _again(self, error: ErrorInfo) -> bool:
        """Retry the whole run, as often as the workflow says."""
        if self.info.attempt >= self.workflow.retries or self._cancelled is not None or is_final(error):
            return False
        self._go_on()
        return True

    def _go_on(self) -> None:
        """The next attempt: what succeeded counts, what failed is asked once more."""
        self.status, self.output, self.error, self.outcome, self.finished_at = "running", None, None, None, None
        self._cancelled = None
        self.info = self.info._replace(attempt=self.info.attempt + 1)
        self.env.arm_deadline(self)
        self.activation = self._activation()
        self.open.clear()
        self._resuming = True
        self._handle(self.activation.resume_failed(self.env.now_ms, self.events))

    def close(self) -> None:
        self._stop_work()
        for task in self._calls.values():
            task.cancel()
        self.activation.evict()

    # -- what it asks for

    def _do(self, ask: Ask) -> None:
        env = self.env
        match ask:
            case StepAsk():
                self._start(ask.path, self._step(ask, 0))
            case SleepAsk(path=path, due=due):
                env.at(due, self, Resolved(path, b"null"))
            case UserAsk(path=path, due=due):
                env.asked(self, ask)
                if due is not None:
                    env.at(due, self, TimedOut(path))
            case SignalAsk(path=path, due=due):
                self._match_signals()
                if due is not None and path in self.open:
                    env.at(due, self, TimedOut(path))
            case ChildAsk():
                self._children[ask.path] = env.start_child(self, ask)
            case WriteAsk():
                env.post_first(self, env.write_session(self.info.session_id, ask))
            case UserStateAsk():
                env.post(self, env.user_operation(self.info.user_id, ask))
            case EmitAsk(path=path):
                env.publish(self, ask)
                env.post(self, Resolved(path, b"null"))
            case TellChildAsk(path=path):
                env.tell_run(ask)
                env.post(self, Resolved(path, b"null"))

    def _withdraw(self, path: str) -> None:
        ask = self.open.pop(path, None)
        task = self._work.pop(path, None)
        if task is not None:
            task.cancel()
        if isinstance(ask, ChildAsk) and not ask.detached:
            self.env.post(self._children[path], Cancelled("cancel"))

    def signal(self, name: str, payload: bytes) -> None:
        """Raises ValueError when it has too much waiting that it has not taken."""
        told = too_many_signals(self.info.run_id, self.signals, (name, payload), self.env.max_payload)
        if told is not None:
            raise ValueError(told)
        self.signals.append((name, payload))
        self._match_signals()

    def _match_signals(self) -> None:
        sent = {name for name, _ in self.signals}
        for path, ask in self.open.items():
            if isinstance(ask, SignalAsk) and ask.name in sent and not self.env.is_posted(self, path):
                self.env.post(self, Signalled(path))

    def _signal_for(self, path: str) -> Resolved | None:
        """The oldest signal that the wait at `path` takes, if it still waits and there is one."""
        ask = self.open.get(path)
        for index, (name, payload) in enumerate(self.signals):
            if isinstance(ask, SignalAsk) and name == ask.name:
                del self.signals[index]
                return Resolved(path, payload)
        return None

    # -- steps

    def _start(self, path: str, work: Coroutine[Any, Any, None]) -> None:
        self._work[path] = asyncio.ensure_future(work)
        self._work[path].add_done_callback(self.env.work_ended)
        self.env.working += 1

    def _stop_work(self) -> None:
        work, self._work = self._work, {}
        for task in work.values():
            task.cancel()

    async def _step(self, ask: StepAsk, attempt: int) -> None:
        """One attempt. What comes of it is an event, or a retry after the wait that its options say."""
        function = None if ask.function is None else find_function(ask.function)
        if ask.options is not None:
            options = StepOptions.from_json(ask.options)
        else:
            options = StepOptions() if function is None else function.policy
        ctx = self._step_context(ask.name, attempt, f"{self.info.run_id}/{ask.path}")
        event: Event | Retry
        try:
            event = Resolved(ask.path, await self._attempt(ask, ctx, options))
        except asyncio.CancelledError:
            if self._work.get(ask.path) is not asyncio.current_task():
                ctx.cancelled = True
                raise
            event = Failed(ask.path, ErrorInfo("asyncio.CancelledError", "the step cancelled itself", "", ask.name))
        except (Exception, SystemExit, GeneratorExit) as error:  # a step that calls sys.exit() has failed
            if options.retryable(error, attempt + 1):
                event = Retry(ask.path, attempt + 1)
                self.env.at(self.env.now_ms + options.delay_ms(attempt + 1), self, event)
                del self._work[ask.path]
                return
            event = Failed(ask.path, error_info(error, ask.name, attempt + 1))
        del self._work[ask.path]
        self.env.post(self, event)

    def _step_context(self, name: str, attempt: int, idempotency_key: str) -> FunctionContext:
        return FunctionContext(
            name=name,
            run_id=self.info.run_id,
            session_id=self.info.session_id,
            user_id=self.info.user_id,
            workflow_name=self.workflow.name,
            attempt=attempt,
            idempotency_key=idempotency_key,
            metadata=self.info.metadata,
            on_progress=self.progress,
            on_log=self.log,
        )

    async def _attempt(self, ask: StepAsk, ctx: FunctionContext, options: StepOptions) -> bytes:
        mocks = self.env.mocks
        names = (ask.name, ask.function)
        if ask.function is None:
            local = _local_call(self.activation, ask.path)
            args, kwargs = ((), {}) if local is None else (local.args, local.kwargs)
            names = (ask.name, None if local is None else local.function.name)
            if mocks.has(*names):
                result = await bounded(mocks.call(names, ctx, args, kwargs), options.timeout_ms, ask.name, ctx)
                data = encode_plain(result) if local is None else local.function.encode_result(result)
                return self.activation.checked(data, f"the result of step {ask.name!r}")
            try:
                work = self.activation.callable(ask.path)
            except UsedUp:
                self._rebuild()
                work = self.activation.callable(ask.path)
            data = await work(ctx)
        else:
            function = find_function(ask.function)
            if function is None:
                raise LookupError(f"no function is called {ask.function!r}")
            if mocks.has(*names):
                given, kwargs = function.decode_input(ask.input)
                call = mocks.call(names, ctx, tuple(given), kwargs)
                data = function.encode_result(await bounded(call, options.timeout_ms, function.name, ctx))
            else:
                data = await execute(function, ask.input, ctx, options)
        return self.activation.checked(data, f"the result of step {ask.name!r}")

    def _rebuild(self) -> None:
        """Fresh code at the same place: a step was given a coroutine, and is tried again."""
        self.activation.evict()
        self.activation = self._activation()
        turn = self.activation.rebuild(self.events, self.pending())
        if turn.calls:
            raise NonDeterminismError(
                f"a step that was given a coroutine is tried again after the in-place call of {turn.calls[0].name!r}: "
                "give ctx.step a function instead of a coroutine"
            )

    # -- in-place calls

    async def _call(self, call: InPlaceCall) -> None:
        self.env.working += 1
        result: Any = None
        failure: BaseException | None = None
        try:
            result = await self._bounded_call(call)
        except asyncio.CancelledError:
            if self._calls.get(call.token) is not asyncio.current_task():
                raise
            failure = asyncio.CancelledError()
        except Exception as error:
            failure = error
        finally:
            self.env.working -= 1
        del self._calls[call.token]
        try:
            self._handle(self.activation.finish_call(call.token, result, failure))
        except Exception as error:
            self.env.broken(error)
        self.env.call_ended(self)

    async def _bounded_call(self, call: InPlaceCall) -> Any:
        ahead = self.activation.calls.get(call.token)
        work = call.run()
        if ahead is not None and self.env.mocks.has(call.name):
            work.close()
            ctx = self._step_context(call.name, 0, f"{self.info.run_id}/{call.name}")
            work = self.env.mocks.call((call.name,), ctx, ahead.args, ahead.kwargs)
        try:
            async with asyncio.timeout(call.timeout_ms / 1000) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise StepTimeout(f"{call.name!r} ran longer than its timeout_ms={call.timeout_ms}") from None

    # -- what the test sees

    def pending(self) -> dict[str, EntryKey]:
        return {path: ask_key(ask) for path, ask in self.open.items()}

    def history(self) -> History:
        return History(self.info, self.input, list(self.events), self.pending(), self.outcome)

    def run_state(self) -> dict[str, Any]:
        state = self.final_state if self.ended else self.activation.run_state()
        return {key: decode_plain(value) for key, value in state.items()}

    def as_model(self) -> Run:
        error = self.error
        return Run.model_validate(
            {
                "run_id": self.info.run_id,
                "workflow": self.workflow.name,
                "status": self.status,
                "input": decode_plain(self.input),
                "output": None if self.output is None else decode_plain(self.output),
                "error": None
                if error is None
                else ErrorDetail(
                    type=short_type(error.type), message=error.message, traceback=error.traceback, step=error.step
                ),
                "session_id": self.info.session_id,
                "user_id": self.info.user_id,
                "created_at": at(self.created_at),
                "started_at": at(self.created_at),
                "finished_at": None if self.finished_at is None else at(self.finished_at),
                "trigger": Trigger(kind="child" if self.parents else "http"),
                "waiting_on": [
                    Waiting(kind=key.kind, entry=key.path, name=key.name, until=_until(self.open[key.path]))
                    for key in self.pending().values()
                ],
                "parent_run_id": self.parents[0][0].info.run_id if self.parents else None,
            }
        )


def _local_call(activation: Activation, path: str) -> LocalCall | None:
    """The call behind a step whose function only the run has; None where it was given a coroutine."""
    work = getattr(activation.open[path], "work", None)
    return work if isinstance(work, LocalCall) else None


def _until(ask: Ask) -> Any:
    due = getattr(ask, "due", None)
    return None if due is None else at(due)
