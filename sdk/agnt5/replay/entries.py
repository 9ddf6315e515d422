"""Entries and their paths: how a durable operation is named the same way in every replay.

Numbers are counted per branch, so a path says where in the code an operation stands and never when it ran:

    ctx.step(a)                     0
    ctx.parallel(ctx.step(b),       1
                 other(ctx))        2      its own operations: 2/0, 2/1, ...
    asyncio.create_task(more(ctx))  3      3/0, ...
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agnt5.codec import decode_plain
from agnt5.errors import child_error, step_error
from agnt5.replay.loop import Timer
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import (
    Ask,
    ChildAsk,
    EmitAsk,
    ErrorInfo,
    SignalAsk,
    SleepAsk,
    StepAsk,
    TellChildAsk,
    UserAsk,
    UserStateAsk,
    WriteAsk,
)

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)
Site = tuple[CodeType, int]

TIMER = "timer"
"""Name of the entries behind `asyncio.timeout`, `wait_for` and every other `call_later` but `asyncio.sleep`."""
ASYNCIO_SLEEP = "asyncio.sleep"


class Branch:
    """One line of execution of a run, and how many entries it has named so far."""

    __slots__ = ("_random", "_uuids", "activation", "count", "prefix", "task")

    def __init__(self, activation: Activation, prefix: str) -> None:
        self.activation = activation
        self.prefix = prefix
        self.count = 0
        self.task: asyncio.Task[Any] | None = None
        self._random: random.Random | None = None
        self._uuids: random.Random | None = None

    def take(self) -> str:
        """The path of the branch's next entry."""
        count = self.count
        self.count = count + 1
        return f"{self.prefix}{count}"

    def operation(self, given: Any) -> Pending[Any] | None:
        """The operation in what was given to `create_task`, parallel or gather; None for anything else, such as a
        coroutine, which is a branch of its own."""
        if isinstance(given, Pending):
            return given
        frame = getattr(given, "cr_frame", None) or getattr(given, "gi_frame", None)
        if frame is None or frame.f_code.co_name != "_wrap_awaitable" or frame.f_code.co_filename != _ASYNCIO_TASKS:
            return None
        # asyncio.gather and wait_for put an awaitable that is no coroutine into one.
        operation = self.operation(frame.f_locals.get("awaitable"))
        if operation is not None:
            given.close()
        return operation

    # Drawn per branch, so that what one branch draws never depends on what another did meanwhile.

    def random(self) -> random.Random:
        if self._random is None:
            self._random = random.Random(f"random {self.activation.info.run_id} {self.prefix}")
        return self._random

    def uuid(self) -> uuid.UUID:
        if self._uuids is None:
            self._uuids = random.Random(f"uuid {self.activation.info.run_id} {self.prefix}")
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)


_ASYNCIO_TASKS = asyncio.tasks.__file__

BRANCH: ContextVar[Branch | None] = ContextVar("agnt5_branch", default=None)
"""The branch whose code is running. Every task carries its own."""


def caller(depth: int = 2) -> Site:
    """Where user code called: kept as code and offset, because a line number costs far more to find."""
    frame = sys._getframe(depth)
    return frame.f_code, frame.f_lasti


def described_site(site: Site | None) -> str:
    """`file:line` of a call."""
    if site is None:
        return "an unknown place"
    code, offset = site
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
            break
    return f"{code.co_filename}:{line}"


def described_entry(kind: str, name: str) -> str:
    """What an entry is, for people: `step 'charge'`."""
    return {
        "user": f"a question to a person ({name})",
        "write": "a session write",
        "user_state": f"a user state {name}",
        "tell": f"a {name} to a child run",
    }.get(kind, f"{kind} {name!r}")


class Open(Protocol):
    """An entry that was asked for and has not ended."""

    @property
    def ask(self) -> Ask: ...
    def resolved(self, data: bytes) -> None: ...
    def failed(self, error: ErrorInfo) -> None: ...
    def timed_out(self) -> None: ...


class Operation(Pending[T_co]):
    """Something that workflow code must await or hand on: one that it forgets fails the run."""

    __slots__ = ("activation", "branch")

    def __init__(self, activation: Activation, site: Site | None) -> None:
        super().__init__(activation.loop, site)
        self.activation = activation
        self.branch = BRANCH.get()
        activation.unasked[id(self)] = self

    def _begin(self) -> None:
        del self.activation.unasked[id(self)]
        self._ask()

    def _ask(self) -> None:
        """Tell the driver."""
        raise NotImplementedError

    def _never_asked(self) -> None:
        self.activation.unasked.pop(id(self), None)


class Entry(Operation[T_co]):
    """A durable operation: asked of the driver under its path, ended by an event."""

    __slots__ = ("ask", "decode", "work")

    def __init__(
        self,
        activation: Activation,
        ask: Ask,
        site: Site | None,
        decode: Callable[[bytes], Any] | None = decode_plain,
        work: StepWork | None = None,
    ) -> None:
        super().__init__(activation, site)
        self.ask = ask
        self.decode = decode
        self.work = work

    def _ask(self) -> None:
        if self.work is not None and self.activation.ended:
            self.work.discard()
        self.activation.ask(self)

    def _never_asked(self) -> None:
        super()._never_asked()
        if self.work is not None:
            self.work.discard()

    def _withdraw(self) -> None:
        self.activation.withdraw(self.ask.path)
        if self.work is not None:
            self.work.discard()

    def forget(self) -> None:
        """The run leaves memory: nobody is woken any more."""
        self._callback, self._more = None, None
        if self.work is not None:
            self.work.discard()

    def resolved(self, data: bytes) -> None:
        if self.work is not None:
            self.work.discard()
        if self.decode is None:
            self.finish(None)
            return
        try:
            value = self.decode(data)
        except Exception as error:  # a result that no longer fits the return annotation
            self.fail(error)
            return
        self.finish(value)

    def failed(self, error: ErrorInfo) -> None:
        if self.work is not None:
            self.work.discard()
        self.fail(child_error(error) if type(self.ask) is ChildAsk else step_error(error))

    def timed_out(self) -> None:
        self.fail(TimeoutError(f"{self.described()} was not answered in time"))

    def described(self) -> str:
        return described_call(self.ask)


def described_call(ask: Ask) -> str:
    """How workflow code writes an ask."""
    match ask:
        case StepAsk():
            return f"ctx.step({ask.name})"
        case SleepAsk():
            return "ctx.sleep(...)" if ask.name == "sleep" else f"ctx.sleep(..., name={ask.name!r})"
        case UserAsk():
            return f"ctx.wait_for_user({ask.question[:40]!r})"
        case SignalAsk():
            return f"ctx.wait_for_signal({ask.name!r})"
        case ChildAsk():
            return f"ctx.call({ask.workflow})"
        case WriteAsk():
            return "a write of ctx.session.state"
        case UserStateAsk():
            return "an operation of ctx.user.state"
        case EmitAsk():
            return f"ctx.emit({ask.topic!r})"
        case TellChildAsk():
            return f"handle.{ask.command}()"


class StepWork(Protocol):
    """The code of a step that only this activation has (a closure, a coroutine)."""

    def run(self, ctx: Any) -> Awaitable[bytes]:
        """Do it once. `ctx` is the step's FunctionContext. Gives the encoded result."""
        ...

    def usable(self) -> bool:
        """False for a coroutine that has been run."""
        ...

    def discard(self) -> None:
        """It will not be needed: an unused coroutine is closed without a warning."""
        ...


class UsedUp(RuntimeError):
    """A step that was given a coroutine is to be tried again: only a rebuild of the run makes a fresh coroutine."""


class TimerEntry:
    """A timer of the deterministic loop as an open entry."""

    __slots__ = ("ask", "timer")

    def __init__(self, ask: SleepAsk, timer: Timer) -> None:
        self.ask: Ask = ask
        self.timer = timer

    def resolved(self, data: bytes) -> None:
        self.timer.path = ""
        self.timer.fire()

    def failed(self, error: ErrorInfo) -> None:
        self.resolved(b"")

    def timed_out(self) -> None:
        self.resolved(b"")


class Chain(Operation[T_co]):
    """An operation made of several entries one after the other (a compare-and-set loop): subclasses start the next
    entry where the last one settled. Cancelling it cancels the entry in flight."""

    __slots__ = ("current", "label", "path", "steps")

    def __init__(self, activation: Activation, path: str, label: str, site: Site | None) -> None:
        super().__init__(activation, site)
        self.path = path
        self.label = label
        self.steps = 0
        self.current: Pending[Any] | None = None

    def described(self) -> str:
        return self.label

    def _ask(self) -> None:
        self._guarded(self.first)

    def first(self) -> None:
        raise NotImplementedError

    def then(self, entry: Pending[Any]) -> None:
        raise NotImplementedError

    def start(self, entry: Pending[Any]) -> None:
        self.current = entry
        entry.watcher = self
        entry.begin()

    def next_path(self) -> str:
        self.steps += 1
        return f"{self.path}/{self.steps - 1}"

    def settled(self, pending: Pending[Any]) -> None:
        self.current = None
        if self.done():
            return
        if pending.cancelled():
            self.cancel()
        elif (error := pending.exception()) is not None:
            self.fail(error)
        else:
            self._guarded(self.then, pending)

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except Exception as error:
            self.fail(error)

    def _withdraw(self) -> None:
        if self.current is not None:
            self.current.cancel()
