"""A timer is kept for as long as somebody waits for it, and no longer."""

from __future__ import annotations

import asyncio

from agnt5 import WorkflowContext, workflow
from agnt5_engine.partition.timers import Timers
from tests.engine.conftest import Engine


@workflow(timeout=3600)
async def in_an_hour_at_most(ctx: WorkflowContext) -> str:
    async with asyncio.timeout(1800):
        return await ctx.wait_for_signal("go", timeout=900)


async def test_the_time_limits_of_runs_that_have_ended_take_no_memory(engine: Engine) -> None:
    for _ in range(10):
        ids = [await engine.submit("in_an_hour_at_most") for _ in range(50)]
        for run_id in ids:
            await engine.processor.signal(run_id, "go", "gone", None)
            assert (await asyncio.wait_for(engine.processor.finished(run_id), 10)).output == "gone"
    assert sum(len(owner.timers) for owner in engine.processor._owners.values()) < 500


async def test_a_timer_that_is_dropped_does_not_fire_unless_it_is_set_again() -> None:
    fired: list[str] = []
    timers = Timers(lambda run_id, path: fired.append(run_id))
    soon = timers.now() + 50
    for n in range(1000):
        timers.set(soon, f"run{n}", "0")
    for n in range(5, 1000):
        timers.drop(soon, f"run{n}", "0")
    for n in range(10):
        timers.drop(soon, f"unknown{n}", "0")
    timers.set(soon, "run7", "0")
    assert set(timers.near(2000, 1000)) == {"run0", "run1", "run2", "run3", "run4", "run7"}
    assert len(timers) < 500
    async with asyncio.timeout(5):
        while len(fired) < 6:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert sorted(fired) == ["run0", "run1", "run2", "run3", "run4", "run7"]
    assert len(timers) == 0
    timers.close()
