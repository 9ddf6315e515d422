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

#: Dropped timers stay in the heap until they are more than this and more than half of it; then all are taken out.
_FEW = 100

#: The alarm may be so much too late (ms) before it is set anew.
_LATE_MS = 20

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
        self._dropped: set[tuple[int, str, str]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = 0
        self.skew = time.time_ns() // 1_000_000 - steady_ms()  # log time minus the steady one
        self._alarm_skew = self.skew  # as of when the alarm was set

    def now(self) -> int:
        """The log's time, as far as this machine can tell (ms)."""
        return steady_ms() + self.skew

    def correct(self, least: int, most: int) -> None:
        """The skew lies between these, as an ack has told: the log's clock may be set, too, ahead or back."""
        self.skew = min(max(self.skew, least), most)
        if self.skew - self._alarm_skew > _LATE_MS:
            self._arm()

    def set(self, due: int, run_id: str, path: str) -> None:
        timer = (due, run_id, path)
        heapq.heappush(self._heap, timer)
        self._dropped.discard(timer)
        if self._alarm is None or due < self._alarm_due:
            self._arm()

    def drop(self, due: int, run_id: str, path: str) -> None:
        """Nobody waits for it any more: a limit of hours on what takes a moment must not be kept for hours."""
        dropped = self._dropped
        dropped.add((due, run_id, path))
        if len(dropped) > max(_FEW, len(self._heap) // 2):
            self._heap = [timer for timer in self._heap if timer not in dropped]
            heapq.heapify(self._heap)
            dropped.clear()

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_skew = self.skew
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
            timer = heapq.heappop(self._heap)
            if timer in self._dropped:
                self._dropped.discard(timer)
            else:
                self._fire(*timer[1:])
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
            if heap[at] not in self._dropped:
                found.append(heap[at][1])
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(todo, (heap[child][0], child))
        return found

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._heap.clear()
        self._dropped.clear()

    def __len__(self) -> int:
        return len(self._heap)
