"""Limits on how many steps of a queue or of a function this process executes at once, and begins in a time.

What a limit holds back waits in order, and never holds back what other limits let through.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from agnt5_engine.limits import Limit

#: A rate lets through at most this many seconds' worth at one moment, so that no second sees much more than its share.
_BURST_SECONDS = 0.05


class Turn(Protocol):
    """One execution that waits for its turn."""

    def wanted(self) -> bool: ...

    def begin(self) -> None:
        """Its turn has come. `Gate.done` is to be called once when it is over."""
        ...

    def drop(self) -> None:
        """It was not wanted any more when its turn came."""
        ...


class Gates:
    """The gates of this process. `queue_limit` and `function_limit` look limits up by name."""

    def __init__(
        self, queue_limit: Callable[[str], Limit | None], function_limit: Callable[[str], Limit | None]
    ) -> None:
        self._queue_limit = queue_limit
        self._function_limit = function_limit
        self._queues: dict[str, _Meter | None] = {}
        self._functions: dict[str, _Meter | None] = {}
        self._gates: dict[tuple[str | None, str], Gate | None] = {}

    def of(self, queue: str | None, function: str) -> Gate | None:
        """The gate for a function's steps on a queue; None: nothing limits them."""
        key = (queue, function)
        if key not in self._gates:
            meters = [
                meter
                for meter in (
                    _meter(self._queues, queue, self._queue_limit) if queue is not None else None,
                    _meter(self._functions, function, self._function_limit),
                )
                if meter is not None
            ]
            self._gates[key] = Gate(meters) if meters else None
        return self._gates[key]


class Gate:
    """Lets turns begin, first come first served, as its meters allow."""

    def __init__(self, meters: list[_Meter]) -> None:
        self._meters = meters
        self._waiting: deque[Turn] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        for meter in meters:
            meter.gates.append(self)

    def submit(self, turn: Turn) -> None:
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._open()

    def done(self) -> None:
        """One that had begun is over."""
        for meter in self._meters:
            meter.running -= 1
        for meter in self._meters:
            meter.gates.append(meter.gates.pop(0))  # the next gate's turn, when several share the meter
            for gate in meter.gates:
                gate._open()

    def _open(self) -> None:
        waiting = self._waiting
        while waiting:
            if not waiting[0].wanted():
                waiting.popleft().drop()
                continue
            now = asyncio.get_running_loop().time()
            wait = max(meter.wait(now) for meter in self._meters)
            if wait > 0:
                if wait < float("inf") and self._alarm is None:
                    self._alarm = asyncio.get_running_loop().call_later(wait, self._ring)
                return
            for meter in self._meters:
                meter.take()
            waiting.popleft().begin()

    def _ring(self) -> None:
        self._alarm = None
        self._open()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._waiting.clear()


class _Meter:
    """One limit, counted."""

    __slots__ = ("_at", "_concurrency", "_most", "_rate", "_tokens", "gates", "running")

    def __init__(self, limit: Limit) -> None:
        self.gates: list[Gate] = []
        self.running = 0
        self._concurrency = limit.concurrency
        self._rate = limit.rate
        self._most = max(1.0, (limit.rate or 0) * _BURST_SECONDS)
        self._tokens = self._most
        self._at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one more may begin; infinity: once one is over."""
        if self._concurrency is not None and self.running >= self._concurrency:
            return float("inf")
        if self._rate is None:
            return 0.0
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        missing = 1.0 - self._tokens
        return missing / self._rate if missing > 1e-9 else 0.0

    def take(self) -> None:
        self.running += 1
        self._tokens -= 1.0


def _meter(known: dict[str, _Meter | None], name: str, limit_of: Callable[[str], Limit | None]) -> _Meter | None:
    if name not in known:
        limit = limit_of(name)
        known[name] = _Meter(limit) if limit is not None else None
    return known[name]
