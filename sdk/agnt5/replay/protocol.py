"""The boundary between a workflow's code and whoever drives it: what it asks, what it is told.

The driver (a processor, `agnt5 replay`, `agnt5.testing`) holds one `Activation` per live run. It calls
`start` once and `deliver` once per event, each with the log's time, and gets a `Turn` back: everything the
code asked for until it blocked again. Nothing here does I/O or reads a clock.

All times are integers: milliseconds since the Unix epoch, the log's time. All payloads are JSON bytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

from agnt5.replay.making import maker

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""What a run's ID may be: it stands in URLs, and before a `/` in the IDs that are made from it."""


class ErrorInfo(NamedTuple):
    """A failure as data: what crosses the log when an exception cannot."""

    type: str  # qualified so that it can be imported again: "ValueError", "shop.errors.CardDeclined"
    message: str
    traceback: str = ""
    step: str | None = None  # the step (or child workflow) it came from, when it came from one
    attempts: int = 1


# ------------------------------------------------------------------ asks: what a workflow wants to happen


class StepAsk(NamedTuple):
    """Run a function and remember its result under `path`."""

    path: str
    name: str
    function: str | None  # registered name; None: only `Activation.callable(path)` has it (closure, coroutine)
    input: bytes  # {"args": [...], "kwargs": {...}}; b"" when function is None
    options: bytes | None = None  # StepOptions as JSON where they differ from the function's own


make_step_ask = maker(StepAsk)


class SleepAsk(NamedTuple):
    """Resolve `path` with null when the log's time reaches `due`."""

    path: str
    name: str
    due: int


class UserAsk(NamedTuple):
    """Ask a person; resolve `path` with the answer (string, list, or null when skipped)."""

    path: str
    question: str
    input_type: str  # text | approval | select | multiselect
    options: bytes  # JSON list of {"id", "label"}
    allow_custom: bool
    skippable: bool
    due: int | None


class SignalAsk(NamedTuple):
    """Resolve `path` with the payload of the run's next unconsumed signal called `name`."""

    path: str
    name: str
    due: int | None


OWN = ""
"""As a child's session: its own."""


class ChildAsk(NamedTuple):
    """Start a child run; resolve with its output. `session_id`/`user_id` None: inherited."""

    path: str
    workflow: str
    input: bytes
    run_id: str
    session_id: str | None
    user_id: str | None
    detached: bool


class WriteAsk(NamedTuple):
    """Change the session's state. `changes` is JSON: {"set": {k: v}, "delete": [k], "clear": bool}, applied
    as clear, then delete, then set. Resolved with null when the write is applied from the log."""

    path: str
    changes: bytes


class UserStateAsk(NamedTuple):
    """One operation on the user's state, which may live in another partition.

    `op` is "read" (resolves with {"version": n, "state": {...}}) or "write": apply `changes` (as in WriteAsk) if
    `version` is None or still the state's version; resolves with {"applied": bool, "version": n, "state": {...}}."""

    path: str
    op: str
    changes: bytes
    version: int | None


class EmitAsk(NamedTuple):
    """Publish an event; resolved with null once it is durable."""

    path: str
    topic: str
    value: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class TellChildAsk(NamedTuple):
    """Send a child run a command. Resolved at once by the driver (it is delivered at least once)."""

    path: str
    child_run_id: str
    command: str  # "cancel" | "signal"
    name: str
    payload: bytes


Ask: TypeAlias = StepAsk | SleepAsk | UserAsk | SignalAsk | ChildAsk | WriteAsk | UserStateAsk | EmitAsk | TellChildAsk


# ------------------------------------------------------------------ events: what a workflow is told


class Resolved(NamedTuple):
    path: str
    value: bytes


make_resolved = maker(Resolved)


class Failed(NamedTuple):
    """The step or child at `path` failed for good."""

    path: str
    error: ErrorInfo


class TimedOut(NamedTuple):
    """The wait at `path` (UserAsk, SignalAsk) passed its due time."""

    path: str


class Cancelled(NamedTuple):
    """The run was asked to stop: CancelledError in its root task. `reason` is "cancel" or "timeout"."""

    reason: str


Event: TypeAlias = Resolved | Failed | TimedOut | Cancelled


# ------------------------------------------------------------------ outcomes: how the code ended


class Completed(NamedTuple):
    output: bytes


class Errored(NamedTuple):
    error: ErrorInfo


class Stopped(NamedTuple):
    """CancelledError left the workflow function after a `Cancelled` was delivered."""


Outcome: TypeAlias = Completed | Errored | Stopped


# ------------------------------------------------------------------ the turn


class InPlaceCall(NamedTuple):
    """`await fn(ctx, ...)`: to be run now on the real event loop. Until its result has come back through
    `Activation.finish_call`, nothing is delivered to this run but a `Cancelled`. Not recorded; run again at every
    rebuild."""

    token: int
    name: str
    timeout_ms: int
    run: Callable[[], Any]  # () -> awaitable of the result; the driver awaits it


class Turn:
    """What one activation asked for, in order, until every coroutine was blocked."""

    __slots__ = ("asks", "calls", "marks", "outcome", "reads", "withdrawn")

    def __init__(
        self,
        asks: list[Ask] | None = None,
        calls: list[InPlaceCall] | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        self.asks = [] if asks is None else asks
        self.withdrawn: list[str] = []  # paths of earlier turns that nobody awaits any more
        self.reads: list[tuple[str, bytes]] = []  # session reads answered in this turn: path, JSON
        self.marks: list[tuple[str, bool]] = []  # what `ctx.patched(name)` said first
        self.calls = [] if calls is None else calls
        self.outcome = outcome


class EntryKey(NamedTuple):
    """What an entry must match when code meets its record: kind and name at a path."""

    path: str
    kind: str  # step | sleep | user | signal | child | write | user_state | emit | tell
    name: str


class PastEvent(NamedTuple):
    """One activating event of a run's history, with all that replaying it needs."""

    time: int
    event: Event | None  # None: the start (always first)
    kind: str  # EntryKey.kind of the entry it ended; "" for start and cancel
    name: str
    digest: int  # `ask_digest` of the ask it ended; 0 for start and cancel
    reads: tuple[tuple[str, bytes], ...]  # answered during the activation that this event caused
    marks: tuple[tuple[str, bool], ...]


class SessionView(Protocol):
    """The applied state of the run's session, read synchronously inside an activation."""

    def session_state(self) -> dict[str, bytes]:
        """Key -> JSON bytes, as of the record being applied. The caller does not change it."""
        ...


class Listener(Protocol):
    """Live-only output of a run: never called while history is replayed, never recorded."""

    def progress(self, fraction: float | None, message: str | None) -> None: ...

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None: ...


class RunInfo(NamedTuple):
    """What a workflow may know of its own run."""

    run_id: str
    workflow: str
    session_id: str  # the run's ID when none was given
    user_id: str  # the session's ID when none was given
    attempt: int  # 0, then 1 after the first retry of the whole run
    metadata: dict[str, str]
    envelope: bytes | None = None  # JSON of the trigger's event envelope, for a parameter named `event`


def ask_key(ask: Ask) -> EntryKey:
    """The kind and name that replay compares."""
    match ask:
        case StepAsk():
            return EntryKey(ask.path, "step", ask.name)
        case SleepAsk():
            return EntryKey(ask.path, "sleep", ask.name)
        case UserAsk():
            return EntryKey(ask.path, "user", ask.input_type)
        case SignalAsk():
            return EntryKey(ask.path, "signal", ask.name)
        case ChildAsk():
            return EntryKey(ask.path, "child", ask.workflow)
        case WriteAsk():
            return EntryKey(ask.path, "write", "session")
        case UserStateAsk():
            return EntryKey(ask.path, "user_state", ask.op)
        case EmitAsk():
            return EntryKey(ask.path, "emit", ask.topic)
        case TellChildAsk():
            return EntryKey(ask.path, "tell", ask.command)


def ask_digest(ask: Ask) -> int:
    """CRC-32 of what was asked: the input of a step or child, the changes of a write, the question, what is sent; 0
    for waits. A failed run that goes on again reuses a result only when this matches too."""
    match ask:
        case StepAsk() | ChildAsk():
            return zlib.crc32(ask.input)
        case WriteAsk() | UserStateAsk():
            return zlib.crc32(ask.changes)
        case EmitAsk():
            return zlib.crc32(ask.value)
        case TellChildAsk():
            return zlib.crc32(ask.payload)
        case UserAsk():
            return zlib.crc32(ask.question.encode())
        case _:
            return 0
