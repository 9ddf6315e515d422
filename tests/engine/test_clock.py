"""A processor's clock may be set: what is due is due by the log's clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5_engine.transport.embedded.batches import Piece
from agnt5_engine.transport.embedded.group_commit import Group
from agnt5_engine.transport.embedded.topics import Partition
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


@pytest.mark.parametrize("stamps", ["the last time again", "what its clock says"])
async def test_a_timer_is_not_asked_for_over_and_over_while_the_clock_of_the_log_has_been_set_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stamps: str
) -> None:
    await engine.run("naps")
    with monkeypatch.context() as set_back:
        true_time = time.time_ns
        set_back.setattr(time, "time_ns", lambda: true_time() - 3600 * 10**9)
        if stamps == "what its clock says":  # as Kafka does
            append = Group.append

            def honest(group: Group, partition: Partition, pieces: list[Piece]) -> Any:
                partition.time = 0
                return append(group, partition, pieces)

            set_back.setattr(Group, "append", honest)
        run_id = await engine.submit("naps", session_id="s")
        await asyncio.sleep(1.5)
        records = sum(owner.state.applied + 1 for owner in engine.processor._owners.values())
    assert records < 60, "a timer that is asked for again and again fills the journal"
    await engine.submit("naps", session_id="s")  # a record tells what the clock of the log says now
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 20)).status == "completed"
