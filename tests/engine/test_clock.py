"""A processor's clock may be set: what is due is due by the log's clock."""

from __future__ import annotations

import time

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from tests.engine.conftest import Engine


@workflow
async def naps(ctx: WorkflowContext) -> None:
    for _ in range(3):
        await ctx.sleep(0.1)


@function(retries={"max_attempts": 3, "initial_interval_ms": 50})
async def third_time_lucky(ctx: FunctionContext) -> int:
    if ctx.attempt < 2:
        raise ConnectionError("away")
    return ctx.attempt


@workflow
async def retries(ctx: WorkflowContext) -> int:
    return await ctx.step(third_time_lucky)


@pytest.mark.parametrize("hours", [-5, 5])
async def test_timers_and_retries_come_when_they_are_due_whatever_the_processors_clock_is_set_to(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    await engine.run("naps")
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + hours * 3600)
    assert (await engine.run("naps")).status == "completed"
    assert (await engine.run("retries")).output == 2
    records = sum(owner.state.applied + 1 for owner in engine.processor._owners.values())
    assert records < 60, "a timer that is asked for again and again fills the journal"
