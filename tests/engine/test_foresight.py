"""Runs that are about to wake are in memory when they do."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5 import WorkflowContext, workflow
from agnt5.replay.activation import Activation
from agnt5_engine.partition.timers import Timers
from agnt5_engine.runs.checkpoint import forget_clean
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.state import PartitionState
from tests.engine.conftest import Engine


@workflow
async def dozes(ctx: WorkflowContext, seconds: float) -> str:
    await ctx.sleep(seconds)
    return "awake"


@given(st.lists(st.integers(-3_000, 6_000)), st.integers(0, 40))
def test_the_timers_foreseen_are_the_next_to_be_due(delays: list[int], most: int) -> None:
    timers = Timers(lambda run_id, path: None)
    now = timers.now()
    timers.now = lambda: now  # type: ignore[method-assign]
    timers._heap = [(now + delay, f"run{i}", "0") for i, delay in enumerate(delays)]
    heapq.heapify(timers._heap)
    found = timers.near(2_000, most)
    expected = sorted(delay for delay in delays if delay <= 2_000)[:most]
    assert [delays[int(run_id[3:])] for run_id in found] == expected
    assert len(set(found)) == len(found)


async def test_runs_about_to_wake_are_brought_into_memory_and_stay_until_they_have(engine: Engine) -> None:
    later = [await engine.submit("dozes", b'{"seconds": 3600}') for _ in range(40)]
    wake = time.time() + 6  # all at once, and not before all have been submitted and the engine is back
    soon = [await engine.submit("dozes", b'{"seconds": %f}' % (wake - time.time())) for _ in range(40)]
    await engine.restart()
    states = [owner.state for owner in engine.processor._owners.values()]

    def inside() -> set[str]:
        return {run_id for state in states for run_id in state.runs}

    while not (inside() >= set(soon) and all(run(states, run_id).activation for run_id in soon)):
        await asyncio.sleep(0.02)
    assert not any(run(states, run_id).ended for run_id in soon), "before they wake"
    for state in states:
        forget_clean(state, keep=0)
    assert inside() & {*soon, *later} == set(soon)
    assert all(run(states, run_id).activation for run_id in soon), "their code too"
    for run_id in soon:
        assert (await asyncio.wait_for(engine.processor.finished(run_id), 30)).output == "awake"
    await asyncio.sleep(0.3)  # what is foreseen is looked at again
    for state in states:
        forget_clean(state, keep=0)
    assert not inside() & {*soon, *later}


async def test_a_run_that_cannot_be_brought_back_beforehand_keeps_no_other_from_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = [await engine.submit("dozes", b'{"seconds": 5}') for _ in range(3)]  # not foreseen yet
    states = [owner.state for owner in engine.processor._owners.values()]
    for owner in engine.processor._owners.values():
        await owner.checkpoints.write()
    for state in states:
        forget_clean(state, keep=0)
    rebuild = Activation.rebuild

    def fails_for_one(self: Activation, *given: Any, **named: Any) -> Any:
        if self.info.run_id == run_ids[0]:
            raise OSError("the disk")
        return rebuild(self, *given, **named)

    monkeypatch.setattr(Activation, "rebuild", fails_for_one)

    async def brought_back() -> bool:
        there = [found for state in states for run_id in run_ids[1:] if (found := state.runs.get(run_id)) is not None]
        return len(there) == 2 and all(found.activation is not None for found in there)

    await engine.until(brought_back)
    assert run(states, run_ids[0]).activation is None
    monkeypatch.undo()
    assert [(await engine.processor.finished(run_id)).output for run_id in run_ids] == ["awake"] * 3


def run(states: list[PartitionState], run_id: str) -> Run:
    return next(state.runs[run_id] for state in states if run_id in state.runs)
