"""Schedules: which runs are due, and which of them may start.

A schedule (`cron`, `every`) has a routing key of its own, so one partition keeps it; its runs' IDs are derived from it
and the due time, and chosen to lie in the same partition. How far it has come is derived from the journal: applying a
request with trigger kind `cron` moves it on, unless the policy on overlaps says that the run may not start now.
Everything here is pure; `partition/schedules.py` sets the alarms.

What is due, as of `now`:

- *backlog*: due times that were missed together, when all of them are to be made up for (`catch_up="all"`);
- *queued*: due times that passed while the last run went on (`overlap="queue"`); with `skip` those are gone;
- *fresh*: everything else since. One that came in time is started; of several, or of one that comes late, `catch_up`
  decides.

Unless runs may overlap, each waits for the one before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import count
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from agnt5.client.models import at
from agnt5.errors import DefinitionError, InputError
from agnt5.types import CronTrigger, EveryTrigger
from agnt5.workflow import Workflow
from agnt5_engine.records.journal import RunRequested, ScheduleBegun
from agnt5_engine.records.routing import digest, murmur2, partition_of
from agnt5_engine.records.rows import Held, ScheduleRow
from agnt5_engine.runs.effects import Rescheduled
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.state import PartitionState

#: A due time this many milliseconds ago (at most half its interval) was not missed: a take-over takes a while.
_IN_TIME = 60_000
#: Runs that one look at a schedule starts at most.
_AT_ONCE = 100
_CRON = b'{"kind":"cron"'


class Schedule(NamedTuple):
    """One schedule of one workflow, as the code has it."""

    key: str
    workflow: str
    trigger: CronTrigger | EveryTrigger
    takes_event: bool

    @property
    def spec(self) -> str:
        """What makes it this schedule: its times, not its policies."""
        return _spec(self.trigger)


class Plan(NamedTuple):
    """Due times (ms) to start now, in order. When there are none: when to look again (ms), or None: once the run that
    goes on has ended."""

    due: list[int]
    look_again: int | None


def schedules_of(workflows: Iterable[Workflow[Any]]) -> list[Schedule]:
    """The schedules of these workflows. Raises DefinitionError for one whose workflow needs input."""
    found: dict[str, Schedule] = {}
    for workflow in workflows:
        for trigger in workflow.triggers:
            if isinstance(trigger, CronTrigger | EveryTrigger):
                takes_event = workflow.binder.takes_event
                try:
                    workflow.bind(b"{}", strict=False, envelope=b'{"value":null}' if takes_event else None)
                except InputError as error:
                    raise DefinitionError(
                        f"{workflow.place}: workflow {workflow.name!r} is started by a schedule, which gives it no "
                        f"input; give its parameters defaults ({', '.join(error.fields)})"
                    ) from None
                key = "c" + digest("schedule", workflow.name, _spec(trigger), length=20)
                found.setdefault(key, Schedule(key, workflow.name, trigger, takes_event))
    return list(found.values())


def _spec(trigger: CronTrigger | EveryTrigger) -> str:
    if isinstance(trigger, CronTrigger):
        return f"cron {trigger.expr} {trigger.timezone}"
    return f"every {trigger.interval_ms} ms"


# ------------------------------------------------------------------ what is due


def plan(trigger: CronTrigger | EveryTrigger, row: ScheduleRow, last: Run | None, now: int) -> Plan:
    """What to start at `now` (ms, log time). `last`: the run that the row names, while it is remembered."""
    allow = trigger.overlap == "allow"
    if last is not None and not last.ended and not allow:
        return Plan([], None)
    at_once = _AT_ONCE if allow else 1
    begun = list(_due(trigger, row.due, min(row.backlog, now), at_once))
    if begun:
        return Plan(begun, None)
    passed = row.due
    if last is not None and last.finished_at is not None and not allow:
        if trigger.overlap == "queue" and (queued := list(_due(trigger, row.due, min(last.finished_at, now), 1))):
            return Plan(queued, None)
        passed = max(passed, last.finished_at)
    fresh = list(_due(trigger, passed, now, at_once))
    if not fresh:
        return Plan([], trigger.after(max(passed, now)))
    if trigger.catch_up == "all":
        return Plan(fresh, None)
    latest = _latest(trigger, fresh[0], now)
    if trigger.catch_up == "skip" and now - latest > min(_IN_TIME, (trigger.after(latest) - latest) // 2):
        return Plan([], trigger.after(now))
    return Plan([latest], None)


def _due(trigger: CronTrigger | EveryTrigger, after: int, until: int, most: int) -> Iterator[int]:
    """The first due times in (after, until]."""
    for _ in range(most):
        after = trigger.after(after)
        if after > until:
            return
        yield after


def _latest(trigger: CronTrigger | EveryTrigger, first: int, now: int) -> int:
    """The last due time until `now`, when `first` is one of them."""
    if isinstance(trigger, EveryTrigger):
        return max(first, now // trigger.interval_ms * trigger.interval_ms)
    due, window = first, 3_600_000
    while now - window > first:
        if (found := trigger.after(now - window)) <= now:
            due = found
            break
        window *= 24
    while (following := trigger.after(due)) <= now:
        due = following
    return due


# ------------------------------------------------------------------ requests


def request(schedule: Schedule, due: int, partitions: int) -> RunRequested:
    """What starts the run of this due time; the same whoever asks."""
    when = at(due).isoformat().replace("+00:00", "Z")
    trigger = {"kind": "cron", "due": when, "schedule": schedule.key, "overlap": schedule.trigger.overlap}
    run_id = _run_id(schedule.key, due, partitions)
    envelope = None
    if schedule.takes_event:
        value = {"due": when, **schedule.trigger.describe()}
        envelope = to_json({"topic": None, "partition": None, "offset": None, "timestamp": due, "value": value})
    return RunRequested(
        run_id=run_id, command_id=run_id, workflow=schedule.workflow, input=b"{}", session_id=None, user_id=None,
        trigger=to_json(trigger), parent_run_id=None, parent_path=None, metadata={}, envelope=envelope,
    )  # fmt: skip


def _run_id(key: str, due: int, partitions: int) -> str:
    """The first of the IDs that derive from the due time that lies in the schedule's own partition. A run of its own
    routing key has a session of its own, and does not wait for the others."""
    home = partition_of(key, partitions)
    for n in count():
        found = digest("due", key, str(due), str(n))
        if (murmur2(found.encode()) & 0x7FFFFFFF) % partitions == home:
            return found
    raise AssertionError


# ------------------------------------------------------------------ applying


def schedule_begun(state: PartitionState, held: Held, r: ScheduleBegun) -> None:
    """Its due times count from now on."""
    if state.schedule(r.schedule) is None:
        state.schedule_changed(ScheduleRow(r.schedule, r.workflow, r.spec, held.time, None, held.time))
    state.effects.append(Rescheduled(r.schedule, None))


def admit(state: PartitionState, held: Held, r: RunRequested) -> bool:
    """Whether a request for a run that is not known may start it: always, except for a schedule's request that is not
    due any more, or that the policy on overlaps forbids. One that may start moves its schedule on."""
    if not r.trigger.startswith(_CRON):
        return True
    trigger = from_json(r.trigger)
    key = trigger.get("schedule")
    row = state.schedule(key) if key is not None else None
    if row is None:
        return True
    due = round(datetime.fromisoformat(trigger["due"]).timestamp() * 1000)
    state.effects.append(Rescheduled(row.key, due))
    if due <= row.due:
        return False
    if trigger.get("overlap") != "allow" and row.run_id is not None:
        last = state.run(row.run_id)
        if last is not None and not last.ended:
            return False
    backlog = held.time if due > row.backlog else row.backlog
    state.schedule_changed(row._replace(due=due, run_id=r.run_id, backlog=backlog))
    return True


def run_ended(state: PartitionState, run: Run) -> None:
    """A run has ended: the schedule that started it may go on."""
    if run.trigger.startswith(_CRON) and (key := from_json(run.trigger).get("schedule")) is not None:
        state.effects.append(Rescheduled(key, None))
