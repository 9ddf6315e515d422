"""The threads in which plain `def` functions run."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

from agnt5.functioncontext import FunctionContext

THREADS = 32
"""How many plain functions run at a time in a process, unless its driver brings another pool."""

_Work = tuple["Future[Any]", Callable[[], Any]]


class StepThreads(Executor):
    """A pool of daemon threads: one that hangs in a function does not keep the process from ending, as those of the
    standard library's pool would. An idle thread takes the work before a new one is started."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads have been shut down")
            self._queue.put((future, lambda: fn(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._started < self._limit:
                self._started += 1
                threading.Thread(target=self._serve, name=f"agnt5-step-{self._started}", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del work, future, call  # keep nothing of the user's alive while idle
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. Never waits: a thread may hang, and being a daemon it ends with the process."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                while not self._queue.empty():
                    work = self._queue.get()
                    if work is not None:
                        work[0].cancel()
            for _ in range(self._started):
                self._queue.put(None)


@lru_cache(maxsize=1)
def step_threads() -> StepThreads:
    """This process's pool, made when it is first needed."""
    return StepThreads()


async def run_in_thread(
    fn: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    threads: Executor | None = None,
    ctx: Any = None,
) -> Any:
    """Call `fn` in a thread, with this task's context variables. When nobody waits any more the thread goes on, and
    `ctx.cancelled` tells it so. An awaitable that `fn` returns is awaited here."""
    call = _Call(fn, args, kwargs)
    loop = asyncio.get_running_loop()
    if isinstance(ctx, FunctionContext):
        ctx.enter_thread(loop)
    try:
        result = await loop.run_in_executor(threads or step_threads(), call)
    except asyncio.CancelledError:
        if isinstance(ctx, FunctionContext):
            ctx.cancelled = True
        raise
    return await result if inspect.isawaitable(result) else result


class _Call:
    __slots__ = ("args", "context", "fn", "kwargs")

    def __init__(self, fn: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.context = contextvars.copy_context()

    def __call__(self) -> Any:
        try:
            return self.context.run(self.fn, *self.args, **self.kwargs)
        except StopIteration as error:  # a future refuses it; a coroutine would have made it this
            raise RuntimeError(f"{getattr(self.fn, '__name__', self.fn)} raised StopIteration") from error
