"""What workflow code awaits: an awaitable that is its own future.

asyncio's helpers accept anything with a future's methods, so an operation can be awaited, handed to `create_task`,
`gather`, `wait` or `wait_for`, and cancelled, without a second object behind it. It does nothing until the first of
these happens: that is when it is asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from agnt5.replay.loop import DeterministicLoop

T_co = TypeVar("T_co", covariant=True)

NEW = 0
WAITING = 1
DONE = 2
FAILED = 3
CANCELLED = 4

Callback = Callable[[Any], object]


class Watcher(Protocol):
    """Told at once, before any task wakes, that what it watches has ended."""

    def settled(self, pending: Pending[Any]) -> None: ...


if TYPE_CHECKING:

    class _Base(Coroutine[Any, Any, T_co]):
        """To typed code an operation is a coroutine: `TaskGroup.create_task` takes nothing else."""

        def send(self, value: Any, /) -> Any: ...
        def throw(self, *error: Any) -> Any: ...
        def close(self) -> None: ...

else:
    _Base = Generic


class Pending(_Base[T_co]):
    """An operation of a workflow: `await` it once or more, each gives the same result or raises the same error."""

    __slots__ = (
        "__weakref__",
        "_asyncio_future_blocking",
        "_callback",
        "_context",
        "_loop",
        "_more",
        "_stable_hash",
        "_state",
        "_value",
        "site",
        "watcher",
    )

    def __init__(self, loop: DeterministicLoop, site: tuple[CodeType, int] | None) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._state = NEW
        self._value: Any = None
        self._callback: Callback | None = None
        self._more: list[tuple[Callback, contextvars.Context]] | None = None
        self.watcher: Watcher | None = None
        self.site = site

    def __hash__(self) -> int:
        try:
            return self._stable_hash
        except AttributeError:  # in a set, its place is the same in every replay
            self._stable_hash: int = self._loop.stable_hash()
            return self._stable_hash

    # -- for subclasses

    def _begin(self) -> None:
        """Ask for it. Called once; may finish at once."""
        raise NotImplementedError

    def _withdraw(self) -> None:
        """Nobody waits for it any more. Called once, when it is cancelled while it was waited for."""

    def described(self) -> str:
        """How the code wrote it, for error messages: `ctx.step(charge)`."""
        raise NotImplementedError

    def finish(self, value: Any) -> None:
        """Give it its result; a second end is ignored."""
        if self._state <= WAITING:
            self._settle(DONE, value)

    def fail(self, error: BaseException) -> None:
        """Give it an error; a second end is ignored."""
        if self._state <= WAITING:
            self._settle(FAILED, error)

    def _settle(self, state: int, value: Any) -> None:
        self._state = state
        self._value = value
        if self.watcher is not None:
            self.watcher.settled(self)
        if self._callback is not None:
            self._loop.ready.append(self)
            if self._more:
                for callback, context in self._more:
                    self._loop.call_soon(callback, self, context=context)
                self._more = None

    def begin(self) -> None:
        """Ask for it unless that has happened."""
        if self._state == NEW:
            self._state = WAITING
            self._begin()

    def run(self) -> None:
        """From the loop's queue: wake whoever waits."""
        callback = self._callback
        if callback is not None:
            self._callback = None
            self._context.run(callback, self)

    # -- awaiting

    def __await__(self) -> Generator[Any, None, T_co]:
        if self._state == NEW:
            self._state = WAITING
            self._begin()
        if self._state == WAITING:
            self._asyncio_future_blocking = True
            yield self
            if self._state == WAITING:
                raise RuntimeError(f"{self.described()} was resumed before it ended; await it with `await`")
        if self._state == DONE:
            return self._value  # type: ignore[no-any-return]
        return self.result()

    # -- a future's methods

    def get_loop(self) -> DeterministicLoop:
        return self._loop

    def done(self) -> bool:
        return self._state > WAITING

    def cancelled(self) -> bool:
        return self._state == CANCELLED

    def result(self) -> T_co:
        state = self._state
        if state == DONE:
            return self._value  # type: ignore[no-any-return]
        if state == FAILED:
            error: BaseException = self._value
            raise error.with_traceback(None) if error.__traceback__ is not None else error
        if state == CANCELLED:
            raise asyncio.CancelledError(*([] if self._value is None else [self._value]))
        raise asyncio.InvalidStateError(f"{self.described()} has no result yet: await it")

    def exception(self) -> BaseException | None:
        if self._state == FAILED:
            return self._value  # type: ignore[no-any-return]
        if self._state == DONE:
            return None
        self.result()
        raise AssertionError

    def cancel(self, msg: Any | None = None) -> bool:
        """Stop waiting for it: what was asked is withdrawn."""
        state = self._state
        if state > WAITING:
            return False
        self._state = CANCELLED
        if state == WAITING:
            self._withdraw()
        else:
            self._never_asked()
        self._settle(CANCELLED, msg)
        return True

    def _never_asked(self) -> None:
        """It was cancelled before it was asked for."""

    def add_done_callback(self, callback: Callback, *, context: contextvars.Context | None = None) -> None:
        if self._state == NEW:
            self._state = WAITING
            self._begin()
        if self._state > WAITING:
            self._loop.call_soon(callback, self, context=context)
            return
        if context is None:
            context = contextvars.copy_context()
        if self._callback is None:
            self._callback = callback
            self._context = context
        elif self._more is None:
            self._more = [(callback, context)]
        else:
            self._more.append((callback, context))

    def remove_done_callback(self, callback: Callback) -> int:
        if self._state > WAITING:
            return 0
        waiting = [] if self._callback is None else [(self._callback, self._context), *(self._more or ())]
        kept = [item for item in waiting if item[0] != callback]
        self._callback, self._more = None, None
        for kept_callback, context in kept:
            self.add_done_callback(kept_callback, context=context)
        return len(waiting) - len(kept)


async def wait_for(pending: Pending[T_co]) -> T_co:
    """The body of a task that waits for an operation."""
    return await pending
