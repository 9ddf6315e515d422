"""Runs in-place calls (`await fn(ctx)`) on the real event loop, one set per routing key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from agnt5.errors import StepTimeout
from agnt5.replay.protocol import InPlaceCall
from agnt5_engine.partition.stopping import stopped


class Calls:
    """`finished(key, token, result, error)` is called once for each call that was not given up."""

    def __init__(self, finished: Callable[[str, int, object, BaseException | None], None]) -> None:
        self._finished = finished
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._closed = False

    def run(self, key: str, call: InPlaceCall) -> None:
        task = asyncio.get_running_loop().create_task(self._run(key, call))
        self._tasks.setdefault(key, set()).add(task)
        task.add_done_callback(partial(self._forget, key))  # also when it is cancelled before it begins

    async def _run(self, key: str, call: InPlaceCall) -> None:
        result: object = None
        error: BaseException | None = None
        try:
            async with asyncio.timeout(call.timeout_ms / 1000) as limit:
                result = await call.run()
        except asyncio.CancelledError as e:
            error = e
        except TimeoutError as e:
            error = StepTimeout(f"{call.name} took longer than {call.timeout_ms} ms") if limit.expired() else e
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # also SystemExit, which ends the process when it escapes
            error = e
        if not self._closed:
            self._finished(key, call.token, result, error)

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        tasks = self._tasks[key]
        tasks.discard(task)
        if not tasks:
            del self._tasks[key]

    def interrupt(self, key: str) -> None:
        for task in self._tasks.get(key, ()):
            task.cancel()

    async def close(self) -> None:
        self._closed = True
        tasks = [t for group in self._tasks.values() for t in group]
        for task in tasks:
            task.cancel()
        await stopped(tasks, "in-place calls")
