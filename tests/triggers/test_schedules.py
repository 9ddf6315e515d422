"""Schedules: which due times start a run, in which zone, after which absence."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5.errors import DefinitionError
from agnt5.types import CronTrigger, EveryTrigger, cron, every
from agnt5.workflow import workflow
from agnt5_engine.records.journal import CancelRequested, ScheduleBegun
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.records.rows import ScheduleRow
from agnt5_engine.runs.effects import Rescheduled
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.schedules import Schedule, plan, request, schedules_of
from tests.runs.bench import Partition

from .engine import processor, runs_of, until

MINUTE = 60_000
HOUR = 60 * MINUTE
NOON = round(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp() * 1000)


def row(due: int, run_id: str | None = None, backlog: int | None = None) -> ScheduleRow:
    return ScheduleRow("c1", "w", "s", due, run_id, due if backlog is None else backlog)


def ran(created: int, finished: int | None) -> Run:
    run = Run("r", "r", "w", b"{}", created)
    if finished is not None:
        run.status, run.finished_at = "completed", finished
    return run


def hourly(**policy: Any) -> CronTrigger:
    return cron("0 * * * *", **policy)


# ------------------------------------------------------------------ policies


def test_a_due_time_that_has_come_starts_a_run_and_else_the_next_is_waited_for() -> None:
    assert plan(hourly(), row(NOON), None, NOON + HOUR) == ([NOON + HOUR], None)
    assert plan(hourly(), row(NOON), None, NOON + 1) == ([], NOON + HOUR)


@pytest.mark.parametrize(("catch_up", "due"), [("one", [4]), ("all", [1]), ("skip", [])], ids=lambda value: str(value))
def test_catch_up_decides_which_missed_times_are_started(catch_up: Any, due: list[int]) -> None:
    found = plan(hourly(catch_up=catch_up), row(NOON), None, NOON + 4 * HOUR + 31 * MINUTE)

    assert found.due == [NOON + n * HOUR for n in due]


def test_skip_still_starts_what_came_due_during_a_take_over() -> None:
    table = hourly(catch_up="skip")

    assert plan(table, row(NOON), None, NOON + 3 * HOUR + 20_000).due == [NOON + 3 * HOUR]
    assert plan(table, row(NOON), None, NOON + 3 * HOUR + 2 * MINUTE) == ([], NOON + 4 * HOUR)


def test_all_makes_up_one_after_the_other_unless_they_may_overlap() -> None:
    now = NOON + 3 * HOUR + 5
    table = hourly(catch_up="all")
    assert plan(table, row(NOON), None, now).due == [NOON + HOUR]
    during = row(NOON + HOUR, "r", backlog=now)
    assert plan(table, during, ran(now, None), now + HOUR) == ([], None)
    assert plan(table, during, ran(now, now + HOUR), now + HOUR).due == [NOON + 2 * HOUR]
    last = row(NOON + 3 * HOUR, "r", backlog=now)
    # What came due while the backlog was worked off overlapped it.
    assert plan(table, last, ran(now + HOUR, now + 2 * HOUR), now + 2 * HOUR) == ([], NOON + 6 * HOUR)

    assert plan(hourly(catch_up="all", overlap="allow"), row(NOON), None, now).due == [
        NOON + n * HOUR for n in (1, 2, 3)
    ]


def test_skip_overlap_leaves_out_what_comes_due_while_the_last_run_goes_on() -> None:
    during = row(NOON, "r")
    assert plan(hourly(), during, ran(NOON, None), NOON + 5 * HOUR) == ([], None)
    ended = NOON + 2 * HOUR + MINUTE
    assert plan(hourly(), during, ran(NOON, ended), ended) == ([], NOON + 3 * HOUR)


def test_queue_overlap_starts_each_when_the_one_before_has_ended() -> None:
    table = hourly(overlap="queue", catch_up="skip")
    during = row(NOON, "r")
    assert plan(table, during, ran(NOON, None), NOON + 5 * HOUR) == ([], None)
    ended = NOON + 2 * HOUR + MINUTE
    assert plan(table, during, ran(NOON, ended), ended).due == [NOON + HOUR]
    assert plan(table, row(NOON + HOUR, "r2"), ran(ended, ended + 1), ended + 1).due == [NOON + 2 * HOUR]
    assert plan(table, row(NOON + 2 * HOUR, "r3"), ran(ended + 1, ended + 2), ended + 2) == ([], NOON + 3 * HOUR)


def test_allow_overlap_starts_whatever_is_due() -> None:
    table = hourly(overlap="allow")
    assert plan(table, row(NOON, "r"), ran(NOON, None), NOON + HOUR).due == [NOON + HOUR]


@given(
    expr=st.sampled_from(
        ["* * * * *", "*/15 * * * *", "30 2 * * *", "0 1-3 * * *", "15 2 * * SUN", "0 0 1 * *", "59 23 L * *"]
    ),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]),
    start=st.integers(-365 * 24 * 60, 365 * 24 * 60).map(lambda minutes: NOON + minutes * MINUTE),
    looks=st.lists(st.integers(1, 3 * 24 * HOUR), min_size=1, max_size=30),
    overlap=st.sampled_from(["skip", "allow", "queue"]),
)
def test_however_often_one_looks_every_due_time_is_started_exactly_once_when_all_are_wanted(
    expr: str, zone: str, start: int, looks: list[int], overlap: Any
) -> None:
    table = cron(expr, timezone=zone, overlap=overlap, catch_up="all")
    state, started, now = row(start), [], start
    for step in looks:
        now += step
        for _ in range(30):
            # A run takes no time at all, so nothing overlaps.
            last = ran(now, now) if state.run_id else None
            if last is not None and overlap == "skip":
                last.finished_at = state.due
            found = plan(table, state, last, now).due
            if not found:
                break
            for due in found:
                assert due <= now
                backlog = now if due > state.backlog else state.backlog
                state = state._replace(due=due, run_id="r", backlog=backlog)
            started += found
    wanted, due = [], start
    while (due := table.after(due)) <= now and len(wanted) < len(started):
        wanted.append(due)
    assert started == wanted


@given(
    seconds=st.floats(0.01, 1e6), last=st.integers(0, 2**41), away=st.integers(0, 2**33),
    catch_up=st.sampled_from(["one", "skip"]),
)  # fmt: skip
def test_one_of_many_missed_times_is_the_latest_however_long_the_absence(
    seconds: float, last: int, away: int, catch_up: Any
) -> None:
    table = EveryTrigger(max(1, round(seconds * 1000)), catch_up=catch_up)
    now = last + away
    found = plan(table, row(last), None, now)

    latest = now // table.interval_ms * table.interval_ms
    assert found.due in ([], [latest])
    if catch_up == "one":
        assert bool(found.due) == (latest > last)
    if not found.due:
        assert found.look_again is not None
        assert found.look_again > now


def test_a_time_that_the_clock_skips_or_repeats_is_due_once() -> None:
    zone = ZoneInfo("Europe/Berlin")
    table = cron("30 2 * * *", timezone="Europe/Berlin")
    for month, day in ((3, 29), (10, 25)):  # 2026: forward, and back
        moment = datetime(2026, month, day, tzinfo=zone) - timedelta(days=1)
        due, days = round(moment.timestamp() * 1000), []
        for _ in range(4):
            due = table.after(due)
            days.append(datetime.fromtimestamp(due / 1000, zone).date())
        assert len(set(days)) == 4


# ------------------------------------------------------------------ where and under which name


def test_in_the_hour_that_comes_twice_what_was_due_the_first_time_is_not_due_again() -> None:
    table = cron("45 1-3 * * *", timezone="Europe/Berlin")
    first, following = (round(datetime(2026, 10, 25, h, 45, tzinfo=UTC).timestamp() * 1000) for h in (0, 2))
    again = first + 30 * MINUTE  # 02:15 for the second time

    assert plan(table, row(first), None, again) == ([], following)
    assert plan(table, row(first, "r"), ran(first, again), again + MINUTE) == ([], following)


@given(due=st.integers(0, 2**42), partitions=st.integers(1, 64))
def test_a_due_time_has_one_run_id_in_the_partition_of_its_table(due: int, partitions: int) -> None:
    table = Schedule("cabcdefghij", "w", hourly(), False)

    one, other = request(table, due, partitions), request(table, due, partitions)

    assert one == other
    assert partition_of(routing_key(one.run_id), partitions) == partition_of(table.key, partitions)
    assert one.run_id != request(table, due + 1, partitions).run_id


def test_a_table_is_known_by_its_times_not_its_policies() -> None:
    @workflow(triggers=[cron("0 9 * * MON"), every(5), cron("0  9 * * MON", overlap="allow")])
    async def report(ctx: Any) -> None: ...

    assert [t.spec for t in schedules_of([report])] == ["cron 0 9 * * MON UTC", "every 5000 ms"]


def test_a_workflow_that_needs_input_cannot_have_a_schedule() -> None:
    @workflow(cron="0 9 * * MON")
    async def report(ctx: Any, day: str) -> None: ...

    with pytest.raises(DefinitionError, match=r"report.*defaults \(day\)"):
        schedules_of([report])


# ------------------------------------------------------------------ applied


def test_how_far_a_schedule_has_come_follows_from_the_journal_and_survives_the_loss_of_memory() -> None:
    @workflow(triggers=[hourly()])
    async def waits(ctx: Any) -> None:
        await ctx.wait_for_signal("go")

    (schedule,) = schedules_of([waits])
    partition = Partition(waits)
    assert partition.apply(ScheduleBegun(schedule.key, schedule.workflow, schedule.spec, partition.state.claim)) == [
        Rescheduled(schedule.key, None)
    ]
    begun = partition.state.schedule(schedule.key)
    assert begun is not None
    first, second = begun.due + HOUR, begun.due + 2 * HOUR

    assert Rescheduled(schedule.key, first) in partition.apply(request(schedule, first, 8))
    partition.checkpoint()
    partition.crash()
    row = partition.state.schedule(schedule.key)
    assert row is not None
    assert (row.due, row.run_id) == (first, request(schedule, first, 8).run_id)

    # Whoever asks for it while the last run goes on, or for what is past, starts nothing.
    assert partition.apply(request(schedule, second, 8)) == [Rescheduled(schedule.key, second)]
    partition.apply(request(schedule, first - HOUR, 8))
    assert list(partition.state.runs) == [row.run_id]

    effects = partition.apply(CancelRequested(row.run_id or "", "c", True))
    assert Rescheduled(schedule.key, None) in effects
    partition.apply(request(schedule, second, 8))
    assert len(partition.state.runs) == 2


# ------------------------------------------------------------------ in a processor


async def test_a_schedule_starts_one_run_per_due_time_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    @workflow(triggers=[every(0.2)])
    async def tick(ctx: Any, event: Any) -> str:
        return str(event.value["due"])

    async with processor(tmp_path) as engine:
        first = await runs_of(engine, "tick", 3)
        assert {run.trigger.kind for run in first} == {"cron"}
        assert all(run.output == run.trigger.model_dump()["due"] for run in first)
    async with processor(tmp_path) as engine:
        runs = await runs_of(engine, "tick", len(first) + 3)
    due = [run.trigger.model_dump()["due"] for run in runs]
    assert len(due) == len(set(due))
    assert all(run.session_id == run.run_id for run in runs)


async def test_times_missed_while_the_processor_was_away_are_made_up_for_by_policy(tmp_path: Path) -> None:
    made: dict[str, int] = {}

    def define() -> None:
        for catch_up in ("one", "all", "skip"):
            trigger = EveryTrigger(400, catch_up=catch_up)  # type: ignore[arg-type]

            @workflow(name=f"tick_{catch_up}", triggers=[trigger])
            async def tick(ctx: Any) -> None: ...

    define()
    async with processor(tmp_path) as engine:
        for catch_up in ("one", "all", "skip"):
            await runs_of(engine, f"tick_{catch_up}", 1)
    await asyncio.sleep(2.2)
    async with processor(tmp_path) as engine:
        for catch_up in ("one", "all", "skip"):
            await runs_of(engine, f"tick_{catch_up}", 3)
            runs = await runs_of(engine, f"tick_{catch_up}", 1)
            # Those made up for are made in one go: by when they were made they are in no order.
            due = sorted(datetime.fromisoformat(run.trigger.model_dump()["due"]).timestamp() for run in runs)
            gaps = [round((b - a) / 0.4) for a, b in pairwise(due)]
            made[catch_up] = max(gaps)
    assert made["all"] == 1
    assert made["one"] >= 4
    assert made["skip"] >= 4


async def test_a_run_that_goes_on_keeps_the_next_from_starting(tmp_path: Path) -> None:
    @workflow(triggers=[every(0.1)])
    async def slow(ctx: Any) -> None:
        await ctx.wait_for_signal("go")

    async with processor(tmp_path) as engine:
        (run,) = await until(lambda: _runs(engine, "slow"))
        await asyncio.sleep(0.4)
        assert len(await _runs(engine, "slow")) == 1
        await engine.signal(run.run_id, "go", None, None)
        await until(lambda: _more(engine, "slow", 2))


async def _runs(engine: Any, name: str) -> Any:
    return (await engine.runs(workflow=name)).items


async def _more(engine: Any, name: str, count: int) -> bool:
    return len(await _runs(engine, name)) >= count
