"""A whole engine for a test, in memory: sessions, users, children, timers that do not wait."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from pydantic_core import to_json

from agnt5 import registry
from agnt5.binding import check_input
from agnt5.client.models import at
from agnt5.codec import decode_plain, encode_plain
from agnt5.errors import InputError
from agnt5.replay.activation import MAX_PAYLOAD
from agnt5.replay.children import id_taken
from agnt5.replay.history import History, Verified, verify
from agnt5.replay.protocol import (
    OWN,
    Cancelled,
    ChildAsk,
    EmitAsk,
    ErrorInfo,
    Event,
    Failed,
    Resolved,
    RunInfo,
    TellChildAsk,
    UserAsk,
    UserStateAsk,
    WriteAsk,
)
from agnt5.replay.questions import check_answer
from agnt5.state import changed
from agnt5.testing.handle import Question, RunHandle, question_of
from agnt5.testing.mocks import Mocks
from agnt5.testing.run import GoOn, Happening, Retry, TestRun
from agnt5.wholes import SESSION, outgrown
from agnt5.workflow import Workflow


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event that a workflow published."""

    run_id: str
    topic: str
    value: Any
    key: bytes | None = None
    headers: dict[str, bytes] = field(default_factory=dict)
    event_id: str = ""


class TestEnvironment:
    """`async with TestEnvironment(...) as env`, then `await env.run(workflow, **input)`.

    `mocks`: what stands in for functions, by function or name: a value, an exception, or a callable that gets the
    arguments. `answers`: for questions that nobody answers through a handle: a callable of the `Question`, or answers
    in the order of the questions. Functions without a mock really run. Time is skipped whenever nothing runs; state of
    sessions and users lasts as long as the environment."""

    __test__ = False

    def __init__(
        self,
        mocks: Mapping[Any, Any] | None = None,
        *,
        answers: Callable[[Question], Any] | Iterable[Any] = (),
        max_payload: int = MAX_PAYLOAD,
    ) -> None:
        self.mocks = Mocks(mocks)
        self.max_payload = max_payload
        self.emitted: list[Emitted] = []
        """What the runs published, in order."""
        self.working = 0
        self._answers: Callable[[Question], Any] | Iterator[Any] = answers if callable(answers) else iter(answers)
        self._skipped = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000
        self._latest = 0
        self._runs: dict[str, TestRun] = {}
        self._sessions: dict[str, dict[str, bytes]] = {}
        self._users: dict[str, tuple[int, dict[str, bytes]]] = {}
        self._queue: deque[tuple[TestRun, Happening]] = deque()
        self._held: dict[str, deque[tuple[TestRun, Happening]]] = {}
        self._in_place: dict[str, TestRun] = {}
        self._timers: list[tuple[int, int, TestRun | asyncio.Future[None], Happening]] = []
        self._timer_count = 0
        self._changed = asyncio.Event()
        self._applying = False
        self._failure: BaseException | None = None

    async def __aenter__(self) -> TestEnvironment:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs.values():
            run.close()
        await asyncio.sleep(0)  # what was cancelled gets to see it
        if self._failure is not None and error is None:
            raise self._failure

    # ------------------------------------------------------------------ for the test

    async def run(self, workflow: Workflow[Any] | str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a workflow to its end and give its output; as `start` and `RunHandle.result`."""
        return await (await self.start(workflow, *args, **kwargs)).result()

    async def start(self, workflow: Workflow[Any] | str, /, *args: Any, **kwargs: Any) -> RunHandle:
        """Start a run. Its input is given as to the function, or as one dict. `session_id=` and `user_id=` put it into
        a session and tell whose it is, unless these are parameters of the workflow: then write
        `workflow.options(session_id=...)`. Raises InputError for input that does not bind."""
        found = registry.workflow(workflow) if isinstance(workflow, str) else workflow
        if not isinstance(found, Workflow):
            raise TypeError(f"a test starts a workflow or its name, not {workflow!r}")
        options = {"session_id": found.child.session_id, "user_id": found.child.user_id}
        for name in list(options):
            if name in kwargs and name not in found.binder.names:
                options[name] = kwargs.pop(name)
        run_id = found.child.id or f"run{len(self._runs) + 1}"
        run = self._new_run(found, _input(found, args, kwargs), run_id, options["session_id"], options["user_id"])
        await self.settle()
        return RunHandle(self, run)

    def replay(self, history: History | RunHandle | bytes | str) -> Verified:
        """Does today's code still go the way of this history? Nothing but workflow code is run. Raises
        NonDeterminismError that names what differs."""
        if isinstance(history, RunHandle):
            history = history.history()
        elif not isinstance(history, History):
            history = History.from_json(history)
        return verify(registry.workflow(history.info.workflow), history, self.max_payload)

    async def skip(self, seconds: float | timedelta) -> None:
        """Let that much time pass for the workflows: timers that are due by then fire."""
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._push(self.now_ms + round(seconds * 1000), passed, None)
        await self.until(passed.done, "time to pass")
        await self.settle()

    @property
    def now(self) -> datetime:
        """The time as workflows see it."""
        return at(self.now_ms)

    def session_state(self, session_id: str) -> dict[str, Any]:
        """A session's state as it is now."""
        return {key: decode_plain(value) for key, value in self.session(session_id).items()}

    def user_state(self, user_id: str) -> dict[str, Any]:
        """A user's state as it is now."""
        return {key: decode_plain(value) for key, value in self._user(user_id)[1].items()}

    def handle(self, run_id: str) -> RunHandle:
        """The handle of any run of this environment, children included. Raises LookupError."""
        return RunHandle(self, self._runs[run_id])

    # ------------------------------------------------------------------ runs

    def _new_run(
        self,
        workflow: Workflow[Any],
        input: bytes,
        run_id: str,
        session_id: str | None,
        user_id: str | None,
        parent: tuple[TestRun, str] | None = None,
    ) -> TestRun:
        if run_id in self._runs:
            raise ValueError(f"there is a run {run_id!r} already")
        session = session_id or run_id
        info = RunInfo(run_id, workflow.name, session, user_id or session, 0, {})
        run = self._runs[run_id] = TestRun(self, workflow, info, input, parent)
        self.post(run, None)
        self.arm_deadline(run)
        return run

    def arm_deadline(self, run: TestRun) -> None:
        """Start the run's own time-out, if its workflow has one; a new attempt has the whole of it again."""
        if run.workflow.timeout_ms is not None:
            run.deadline = self.now_ms + run.workflow.timeout_ms
            self.at(run.deadline, run, Cancelled("timeout"))

    def start_child(self, parent: TestRun, ask: ChildAsk) -> TestRun:
        known = self._runs.get(ask.run_id)
        if known is not None:
            if known.workflow.name != ask.workflow:
                error = id_taken(ask.run_id, known.workflow.name, ask.workflow)
                self.post(parent, Failed(ask.path, error._replace(step=ask.workflow)))
            else:
                known.asked_again(parent, ask.path)
            return known
        workflow = registry.workflow(ask.workflow)
        session = ask.run_id if ask.session_id == OWN else ask.session_id or parent.info.session_id
        user = ask.user_id or parent.info.user_id
        return self._new_run(workflow, ask.input, ask.run_id, session, user, (parent, ask.path))

    def tell_run(self, ask: TellChildAsk) -> None:
        run = self._runs.get(ask.child_run_id)
        if run is None:
            return
        if ask.command == "cancel":
            self.post(run, Cancelled("cancel"))
        else:
            with contextlib.suppress(ValueError):  # it has too many waiting: whoever runs it would not tell either
                run.signal(ask.name, ask.payload)

    # ------------------------------------------------------------------ state and events that leave

    def session(self, session_id: str) -> dict[str, bytes]:
        return self._sessions.setdefault(session_id, {})

    def write_session(self, session_id: str, ask: WriteAsk) -> Resolved | Failed:
        """Do what a WriteAsk says; gives what came of it."""
        before = self.session(session_id)
        after = changed(before, ask.changes)
        if (told := outgrown(f"session {session_id}", before, after, SESSION * self.max_payload)) is not None:
            return Failed(ask.path, ErrorInfo("ValueError", told, "", "ctx.session.state"))
        self._sessions[session_id] = after
        return Resolved(ask.path, b"null")

    def _user(self, user_id: str) -> tuple[int, dict[str, bytes]]:
        return self._users.setdefault(user_id, (0, {}))

    def user_operation(self, user_id: str, ask: UserStateAsk) -> Resolved | Failed:
        """Do what a UserStateAsk says; gives what came of it."""
        version, state = self._user(user_id)
        applied = ask.op == "write" and ask.version in (None, version)
        if applied:
            before, state = state, changed(state, ask.changes)
            if (told := outgrown(f"user {user_id}", before, state, self.max_payload)) is not None:
                return Failed(ask.path, ErrorInfo("ValueError", told, "", "ctx.user.state"))
            version += 1
            self._users[user_id] = (version, state)
        reply: dict[str, Any] = {"version": version, "state": {key: decode_plain(v) for key, v in state.items()}}
        if ask.op == "write":
            reply["applied"] = applied
        return Resolved(ask.path, to_json(reply))

    def publish(self, run: TestRun, ask: EmitAsk) -> None:
        event_id = f"{run.info.run_id}/{ask.path}"
        self.emitted.append(
            Emitted(run.info.run_id, ask.topic, decode_plain(ask.value), ask.key, dict(ask.headers), event_id)
        )

    def asked(self, run: TestRun, ask: UserAsk) -> None:
        """Answer a question by the environment's `answers`, when it has any."""
        question = question_of(run.info.run_id, ask)
        if callable(self._answers):
            answer = self._answers(question)
        else:
            answer = next(self._answers, self)
            if answer is self:
                return
        self.post(run, Resolved(ask.path, check_answer(ask, answer)))

    # ------------------------------------------------------------------ one event after the other

    def post(self, run: TestRun, event: Happening) -> None:
        self._queue.append((run, event))
        self._changed.set()

    def post_first(self, run: TestRun, event: Event) -> None:
        self._queue.appendleft((run, event))
        self._changed.set()

    def is_posted(self, run: TestRun, path: str) -> bool:
        """Whether an event for the entry is on its way."""
        waiting = [*self._queue, *(item for held in self._held.values() for item in held)]
        return any(owner is run and getattr(event, "path", None) == path for owner, event in waiting)

    def _apply(self) -> None:
        if self._applying:
            return
        self._applying = True
        try:
            while self._queue:
                run, event = self._queue.popleft()
                session = run.info.session_id
                busy = self._in_place.get(session)
                if busy is not None and not (busy is run and isinstance(event, Cancelled)):
                    self._held.setdefault(session, deque()).append((run, event))
                    continue
                try:
                    run.take(event)
                except Exception as error:
                    self.broken(error)
                    return
                self._note_in_place(run)
        finally:
            self._applying = False

    def _note_in_place(self, run: TestRun) -> None:
        """During an in-place call the session's other events wait."""
        session = run.info.session_id
        if run.in_place:
            self._in_place[session] = run
        elif self._in_place.get(session) is run:
            del self._in_place[session]
            self._queue.extendleft(reversed(self._held.pop(session, ())))

    def call_ended(self, run: TestRun) -> None:
        self._note_in_place(run)
        self._changed.set()

    def work_ended(self, task: asyncio.Task[None]) -> None:
        self.working -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broken(error)
        self._changed.set()

    def broken(self, error: BaseException) -> None:
        """The test cannot go on: whoever waits gets this error."""
        self._failure = self._failure or error
        self._changed.set()

    # ------------------------------------------------------------------ time

    @property
    def now_ms(self) -> int:
        """Real time, and what was skipped."""
        self._latest = max(self._latest, time.monotonic_ns() // 1_000_000 + self._skipped)
        return self._latest

    def at(self, due: int, run: TestRun, event: Event | Retry | GoOn) -> None:
        self._push(due, run, event)

    def _push(self, due: int, whom: TestRun | asyncio.Future[None], event: Happening) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (due, self._timer_count, whom, event))
        self._changed.set()

    def _next_timer(self) -> int | None:
        """When the next timer that still matters is due."""
        while self._timers:
            due, _, whom, event = self._timers[0]
            if isinstance(whom, TestRun):
                path = getattr(event, "path", None)
                alive = not whom.ended and (path is None or path in whom.open)
            else:
                alive = not whom.done()
            if alive:
                return due
            heapq.heappop(self._timers)
        return None

    def _fire(self) -> None:
        while (due := self._next_timer()) is not None and due <= self.now_ms:
            _, _, whom, event = heapq.heappop(self._timers)
            if isinstance(whom, TestRun):
                self.post(whom, event)
                self._apply()
            elif not whom.done():
                whom.set_result(None)

    async def settle(self) -> None:
        """Apply what has come, let work that is ready go on; skip no time."""
        for _ in range(3):
            self._apply()
            await asyncio.sleep(0)
        self._apply()
        self._raise()

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Go on until `done()`; when nothing runs, skip to the next timer."""
        while True:
            self._changed.clear()
            self._apply()
            self._fire()
            self._raise()
            if done():
                return
            if self._queue:
                continue
            due = self._next_timer()
            if self.working or self._in_place:
                timeout = None if due is None else max(0, due - self.now_ms) / 1000
                try:
                    async with asyncio.timeout(timeout):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            elif due is not None:
                self._skipped += max(0, due - self.now_ms)
            elif not self._changed.is_set():
                raise RuntimeError(f"waiting for {what} would never end: {self._stuck()}")
            else:
                await asyncio.sleep(0)

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stuck(self) -> str:
        told = []
        for run in self._runs.values():
            if run.ended:
                continue
            waits = ", ".join(f"{key.kind} {key.name!r} at {key.path}" for key in run.pending().values())
            told.append(f"run {run.info.run_id} of {run.workflow.name!r} waits for {waits or 'nothing'}")
        hint = "answer it with handle.answer(...), or send it a signal with handle.signal(...), before waiting for it"
        return f"{'; '.join(told) or 'no run is live'}. If it waits for a person or a signal, {hint}"


def _input(workflow: Workflow[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """What was given, as the input object: as to the function, or one dict of its fields."""
    if len(args) == 1 and not kwargs and isinstance(args[0], dict):
        try:
            return check_input(workflow, encode_plain(args[0]), strict=True)
        except InputError:
            try:
                return workflow.encode_input(args, kwargs)
            except InputError:
                pass
            raise
    return workflow.encode_input(args, kwargs)
