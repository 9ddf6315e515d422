"""An event loop that is a queue: first in, first out, on the log's time, touching nothing outside the process.

Real asyncio tasks and futures run on it, so `asyncio.gather`, `TaskGroup`, `timeout`, `Queue` and the rest work in
workflow code as everywhere. Timers become durable entries of the run; everything that would reach a thread, a socket,
a process or a clock is refused with the remedy.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import zlib
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")

_SET_RESULT = getattr(asyncio.futures, "_set_result_unless_cancelled", None)
"""What `asyncio.sleep` schedules, by which a sleep is told from a time limit."""


class Ready(Protocol):
    """What stands in the queue."""

    def run(self) -> None: ...


class Host(Protocol):
    """What the loop needs of the run it belongs to."""

    loop: DeterministicLoop

    def now_ms(self) -> int: ...

    def add_timer(self, timer: Timer) -> None:
        """Ask for a durable timer that appends itself to the loop's queue when it is due."""

    def drop_timer(self, timer: Timer) -> None: ...

    def new_task(self, coro: Any, name: str | None, context: contextvars.Context | None) -> asyncio.Task[Any]:
        """Decide whether what was given to `create_task` is a branch, and make the task."""

    def report(self, context: dict[str, Any]) -> None:
        """asyncio tells of something nobody waits for: a callback or a forgotten task failed."""


class _Gone:
    """In place of a run that has left memory: what still holds on to its loop can do nothing with it."""

    def refuse(self, *_given: object) -> NoReturn:
        raise RuntimeError("the workflow's run has left memory: its tasks, timers and futures are of no use any more")

    loop = property(refuse)
    now_ms = add_timer = new_task = refuse

    def drop_timer(self, timer: Timer) -> None:
        pass

    def report(self, context: dict[str, Any]) -> None:
        pass


GONE: Any = _Gone()


class StableTask(asyncio.Task[T]):
    """A task whose place in a set is the same in every replay: a TaskGroup cancels its tasks, and `asyncio.wait`
    gives them back, in the order of a set, which is otherwise that of their memory addresses."""

    def __init__(self, coro: Any, *, loop: DeterministicLoop, name: str, context: contextvars.Context) -> None:
        self._stable_hash = loop.stable_hash()
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._stable_hash


class StableFuture(asyncio.Future[T]):
    """The same for a future."""

    def __hash__(self) -> int:
        found: int | None = getattr(self, "_stable_hash", None)
        if found is None:
            loop: Any = self.get_loop()
            found = self._stable_hash = int(loop.stable_hash())
        return found


class Soon:
    """A callback to be run, as `call_soon` returns it."""

    __slots__ = ("args", "callback", "context")

    def __init__(
        self, callback: Callable[..., object] | None, args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context

    def run(self) -> None:
        if self.callback is not None:
            self.context.run(self.callback, *self.args)

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class Timer(Soon):
    """A callback to be run at a log time: a durable entry of the run, withdrawn when it is cancelled."""

    __slots__ = ("due", "host", "is_sleep", "path")

    def __init__(
        self,
        host: Host,
        due: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        super().__init__(callback, args, context)
        self.host = host
        self.due = due
        self.path = ""
        self.is_sleep = callback is _SET_RESULT

    def when(self) -> float:
        return self.due / 1000

    def fire(self) -> None:
        """It is due: into the queue."""
        self.host.loop.ready.append(self)

    def cancel(self) -> None:
        if self.callback is not None:
            super().cancel()
            self.host.drop_timer(self)  # does nothing when it has fired


def due_ms(seconds: float) -> int:
    """A point on the loop's clock as milliseconds, up; a float of today is exact to a quarter of a microsecond."""
    if not -1e11 < seconds < 1e11:  # also NaN
        raise ValueError(f"a timer at {seconds!r} seconds is never due: give a finite delay")
    ms = seconds * 1000 - 0.005
    whole = int(ms)
    return whole + 1 if ms > whole else whole


class DeterministicLoop(asyncio.AbstractEventLoop):
    """See the module. One per run; driven by `run_ready` from inside whatever loop is running."""

    def __init__(self, host: Host, name: str) -> None:
        self.ready: deque[Ready] = deque()
        self.host = host
        self.closed = False
        self._last_hash = zlib.crc32(name.encode())

    def stable_hash(self) -> int:
        """Spread over all runs of the process, the same in every replay of this one."""
        self._last_hash = (self._last_hash + 0x9E3779B97F4A7C15) & 0x0FFFFFFFFFFFFFFF
        return self._last_hash

    # -- driving

    def run_ready(self, most: int = -1) -> None:
        """Run until nothing is ready, or `most` callbacks have run. The loop that was running before is running again
        afterwards."""
        ready = self.ready
        take = ready.popleft
        outer = events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(*_GENERATOR_HOOKS)
        try:
            while ready and most:
                most -= 1
                item = take()
                try:
                    item.run()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a task's own failure is in the task; this is a bare callback's
                    if not isinstance(error, SystemExit):
                        self.call_exception_handler({"message": "a callback failed", "exception": error})
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(outer)

    # -- what asyncio's tasks, futures and helpers call

    def call_soon(  # type: ignore[override]  # Soon stands in for Handle
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Soon:
        item = Soon(callback, args, contextvars.copy_context() if context is None else context)
        if not self.closed:
            self.ready.append(item)
        return item

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Soon:
        return self.call_at(self.host.now_ms() / 1000 + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Soon:
        due = due_ms(when)
        if due <= self.host.now_ms():
            return self.call_soon(callback, *args, context=context)
        timer = Timer(self.host, due, callback, args, contextvars.copy_context() if context is None else context)
        self.host.add_timer(timer)
        return timer

    def time(self) -> float:
        """The log's time in seconds since the epoch."""
        return self.host.now_ms() / 1000

    def create_future(self) -> asyncio.Future[Any]:
        return StableFuture(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **_options: Any,
    ) -> asyncio.Task[T]:
        return self.host.new_task(coro, name, context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closed:
            self.host.report(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closed

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None


# ------------------------------------------------------------------ what would leave the run


def _refused(name: str) -> Any:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"{_TOLD.get(name, f'loop.{name}')} cannot be used in workflow code: the workflow is replayed, and what "
            "it does outside would be done again. Put it in a @function and call that with ctx.step(...)"
        )

    refuse.__name__ = name
    return refuse


_TOLD = {
    "run_in_executor": "A thread or an executor (asyncio.to_thread, loop.run_in_executor)",
    "call_soon_threadsafe": "A thread",
    "run_until_complete": "Running an event loop",
    "run_forever": "Running an event loop",
    "create_connection": "A network connection",
    "getaddrinfo": "A network look-up",
    "subprocess_exec": "A subprocess",
    "subprocess_shell": "A subprocess",
    "add_signal_handler": "A signal handler",
}

for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("__") and _name not in DeterministicLoop.__dict__:
        setattr(DeterministicLoop, _name, _refused(_name))


# ------------------------------------------------------------------ what asyncio itself puts into sets


class _AsGiven(set[Any]):
    """A set that is gone through in the order in which it was given."""

    def __init__(self, given: Iterable[Any]) -> None:
        if isinstance(given, (set, frozenset)) and any(map(asyncio.iscoroutine, given)):
            raise TypeError(
                "a set of coroutines has another order in every replay, so their steps would be mistaken for each "
                "other's: give asyncio.as_completed a list"
            )
        self._given = dict.fromkeys(given)
        super().__init__(self._given)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._given)


def _set(*given: Iterable[Any]) -> set[Any]:
    """`set` for the code of `asyncio.as_completed`, which makes its tasks in the order of one: for coroutines that is
    the order of their memory addresses, and each replay would number their branches in another."""
    ours = given and isinstance(events._get_running_loop(), DeterministicLoop)
    return _AsGiven(*given) if ours else set(*given)


def _gathering_hash(future: Any) -> int:
    """What `asyncio.gather` returns is a future of its own kind: `asyncio.wait` gives several back in a set."""
    stable = isinstance(future.get_loop(), DeterministicLoop)
    return StableFuture.__hash__(future) if stable else object.__hash__(future)


asyncio.tasks.set = _set  # type: ignore[attr-defined]
asyncio.tasks._GatheringFuture.__hash__ = _gathering_hash  # type: ignore[attr-defined]


# ------------------------------------------------------------------ async generators


def _finish_generator(generator: Any) -> None:
    """An async generator was dropped before its end. When that happens is up to the garbage collector, so its cleanup
    may run plain statements but gets no branch of the run: whatever it would await does not happen."""
    closing = generator.aclose()
    try:
        contextvars.Context().run(closing.send, None)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        closing.close()


_GENERATOR_HOOKS = (None, _finish_generator)
