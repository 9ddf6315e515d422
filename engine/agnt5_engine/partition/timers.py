"""The timers of one partition: a heap, and one alarm for its head.

Due times are the log's; the alarm is set on a clock of this machine that nobody can set, corrected by the skew seen in
the acks, and the log decides: a TimerFired that comes too early is asked again.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

#: Timers that fire before the loop has a turn for others.
_AT_ONCE = 500

#: Goes on while the machine sleeps, wherever there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_ms() -> int:
    """Milliseconds since some moment, unmoved when the machine's clock is set. A skew against the wall clock would be
    wrong by as much as that is stepped, until the next ack at best: timers would fire over and over, or hours late."""
    return time.clock_gettime_ns(_CLOCK) // 1_000_000


class Timers:
    """Calls `fire(run_id, path)` when a due time (ms, log time) is believed to have come."""

    def __init__(self, fire: Callable[[str, str], None]) -> None:
        self._fire = fire
        self._heap: list[tuple[int, str, str]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = 0
        self.skew = time.time_ns() // 1_000_000 - steady_ms()  # log time minus the steady one

    def now(self) -> int:
        """The log's time, as far as this machine can tell (ms)."""
        return steady_ms() + self.skew

    def set(self, due: int, run_id: str, path: str) -> None:
        heapq.heappush(self._heap, (due, run_id, path))
        if self._alarm is None or due < self._alarm_due:
            self._arm()

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._heap:
            self._alarm_due = self._heap[0][0]
            # Half a millisecond late rather than early: an early one costs a record.
            delay = max((self._alarm_due - self.skew) / 1000 - time.clock_gettime(_CLOCK) + 0.0005, 0)
            self._alarm = asyncio.get_running_loop().call_later(min(delay, 3600), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self.now()
        for _ in range(_AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                break
            _, run_id, path = heapq.heappop(self._heap)
            self._fire(run_id, path)
        self._arm()

    def near(self, ahead: int, most: int) -> list[str]:
        """The runs of timers due within `ahead` ms, the next to be due first, at most so many."""
        limit, heap = self.now() + ahead, self._heap
        found: list[str] = []
        todo = [(heap[0][0], 0)] if heap else []
        while todo and len(found) < most:
            due, at = heapq.heappop(todo)
            if due > limit:
                break
            found.append(heap[at][1])
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(todo, (heap[child][0], child))
        return found

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._heap.clear()

    def __len__(self) -> int:
        return len(self._heap)
