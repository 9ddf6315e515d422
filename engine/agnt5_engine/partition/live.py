"""Who waits for what happens in a partition: verdicts, run ends, followed histories. Nothing here is recorded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from agnt5_engine.runs.effects import Verdict

#: Live-only events a slow reader is owed, and those of all runs that are kept for whoever begins to follow one just
#: then; older ones are dropped first.
_LINES = 200
_JUST_NOW_MS = 2000


class Line(NamedTuple):
    """A live-only event: `progress.update` or `log`."""

    time: int
    type: str
    data: dict[str, Any]


class PartitionMoved(Exception):
    """The partition is no longer owned here."""


class Watcher:
    """One reader of one run."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.lines: deque[Line] = deque(maxlen=_LINES)
        self.gone = False

    async def wait(self) -> None:
        """Until something happened. Raises PartitionMoved when it will happen elsewhere."""
        await self.changed.wait()
        self.changed.clear()
        if self.gone:
            raise PartitionMoved


class Live:
    """The waiters of one partition."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str], list[asyncio.Future[Verdict]]] = {}  # by run and command
        self._watchers: dict[str, set[Watcher]] = {}
        self._recent: deque[tuple[str, Line]] = deque(maxlen=_LINES)

    def expect(self, run_id: str, command_id: str) -> asyncio.Future[Verdict]:
        """What the run will make of the command. Whoever sends a signal chooses its ID, so several may wait for one."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._verdicts.setdefault((run_id, command_id), []).append(future)
        return future

    def verdict(self, v: Verdict) -> None:
        for future in self._verdicts.pop((v.run_id, v.command_id), ()):
            if not future.done():
                future.set_result(v)

    def forget(self, run_id: str, command_id: str) -> None:
        """Somebody waits no more."""
        if (waiting := self._verdicts.pop((run_id, command_id), None)) is not None:
            waiting = [future for future in waiting if not future.done()]
            if waiting:
                self._verdicts[run_id, command_id] = waiting

    def watch(self, run_id: str) -> Watcher:
        watcher = Watcher()
        self._watchers.setdefault(run_id, set()).add(watcher)
        return watcher

    def said(self, run_id: str) -> list[Line]:
        """What the run said just now: whoever starts it and follows it comes after its first activation."""
        since = int(time.time() * 1000) - _JUST_NOW_MS
        return [line for of, line in self._recent if of == run_id and line.time >= since]

    def unwatch(self, run_id: str, watcher: Watcher) -> bool:
        """True when nobody watches the run any more."""
        watchers = self._watchers.get(run_id)
        if watchers is None:
            return True
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[run_id]
        return not watchers

    def moved(self, run_id: str) -> None:
        for watcher in self._watchers.get(run_id, ()):
            watcher.changed.set()

    def line(self, run_id: str, type: str, data: dict[str, Any]) -> None:
        line = Line(int(time.time() * 1000), type, {name: _told(value) for name, value in data.items()})
        self._recent.append((run_id, line))
        for watcher in self._watchers.get(run_id, ()):
            watcher.lines.append(line)
            watcher.changed.set()

    def listener(self, run_id: str) -> RunListener:
        return RunListener(self, run_id)

    def close(self, partition: int) -> None:
        for future in (future for waiting in self._verdicts.values() for future in waiting):
            if not future.done():
                future.set_exception(PartitionMoved(partition))
                future.exception()  # whoever still waits gets it; nobody need
        self._verdicts.clear()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.gone = True
                watcher.changed.set()
        self._watchers.clear()


def _told(value: Any) -> Any:
    """The value as it is now, in JSON's types, or as text what no JSON can hold: code logs what it likes. A line is
    kept for longer than what it tells of."""
    with suppress(Exception):
        return from_json(to_json(value))
    with suppress(Exception):
        return str(value).encode(errors="replace").decode()
    return f"<{type(value).__qualname__}>"


class RunListener:
    """What a run's contexts say while they are live."""

    __slots__ = ("_live", "_run_id")

    def __init__(self, live: Live, run_id: str) -> None:
        self._live = live
        self._run_id = run_id

    def progress(self, fraction: float | None, message: str | None) -> None:
        self._live.line(self._run_id, "progress.update", {"fraction": fraction, "message": message})

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self._live.line(self._run_id, "log", {"level": level, "message": message, **fields})
