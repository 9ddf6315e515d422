"""The schedules of one partition: an alarm for each, and a request in the journal when it is due.

Everything that decides is in `runs/schedules.py` and in the journal; an alarm that is lost is set again at the next
start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from agnt5_engine.records.journal import JournalRecord, ScheduleBegun
from agnt5_engine.runs.schedules import Schedule, plan, request
from agnt5_engine.runs.state import PartitionState

log = structlog.stdlib.get_logger(__name__)

#: The longest alarm, in seconds: the clock may be set meanwhile.
_LONGEST = 600.0


class Schedules:
    """Fires the `schedules` that lie in this partition. `append(run_id, record)` writes to its journal; `now()` is the
    log's time (ms), as far as this machine can tell."""

    def __init__(
        self,
        state: PartitionState,
        schedules: Sequence[Schedule],
        partitions: int,
        append: Callable[[str, JournalRecord], None],
        now: Callable[[], int],
    ) -> None:
        self._state = state
        self._schedules = {schedule.key: schedule for schedule in schedules}
        self._partitions = partitions
        self._append = append
        self._now = now
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._asked: dict[str, int] = {}  # due times whose requests are on their way
        self._live = False

    def start(self) -> None:
        """The partition is live: begin what is new, make up for what was missed, set the alarms."""
        self._live = True
        for key, schedule in self._schedules.items():
            if self._state.schedule(key) is None:
                log.info("schedule.begun", workflow=schedule.workflow, schedule=schedule.spec)
                self._append(key, ScheduleBegun(key, schedule.workflow, schedule.spec, self._state.claim))
            else:
                self.look(key)

    def look(self, key: str, decided: int | None = None) -> None:
        """Start what is due, and set the next alarm. `decided`: the due time whose request has been applied."""
        schedule, row = self._schedules.get(key), self._state.schedule(key)
        if schedule is None or row is None or not self._live:
            return
        if (alarm := self._alarms.pop(key, None)) is not None:
            alarm.cancel()
        if decided is not None and decided == self._asked.get(key):
            del self._asked[key]
        if self._asked.get(key, -1) > row.due:
            return
        now = self._now()
        last = self._state.run(row.run_id) if row.run_id is not None else None
        found = plan(schedule.trigger, row, last, now)
        for due in found.due:
            record = request(schedule, due, self._partitions)
            log.info("schedule.due", workflow=schedule.workflow, run_id=record.run_id, late_ms=now - due)
            self._append(record.run_id, record)
        if found.due:
            self._asked[key] = found.due[-1]
        elif found.look_again is not None:
            # Half a millisecond late rather than early.
            delay = max((found.look_again - now) / 1000 + 0.0005, 0.0)
            self._alarms[key] = asyncio.get_running_loop().call_later(min(delay, _LONGEST), self.look, key)

    def close(self) -> None:
        self._live = False
        for alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()
