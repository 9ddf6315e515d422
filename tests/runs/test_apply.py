"""Guarantees of applying, told record by record. What random worlds found is kept here in its smallest form."""

from __future__ import annotations

from typing import Any

from agnt5 import WorkflowContext, workflow
from agnt5_engine.records.journal import StepFailed
from agnt5_engine.runs import history as h
from agnt5_engine.runs import table
from agnt5_engine.runs.effects import Execute
from tests.runs.bench import Partition
from tests.runs.programs import work


@workflow(name="apply.one")
async def one(ctx: WorkflowContext) -> Any:
    return await ctx.step(work, 1, 0)


@workflow(name="apply.boom", retries=1)
async def boom(ctx: WorkflowContext) -> str:
    if ctx.attempt == 0:
        raise ValueError("the first attempt fails")
    return "done"


def test_a_step_that_was_retried_across_a_checkpoint_leaves_no_row_behind() -> None:
    p = Partition(one)
    p.request(one)
    p.checkpoint()
    p.apply(StepFailed("run", "0", 0, "ValueError", "no", "", p.clock, p.state.claim))
    p.succeed("0", ["worked", 1], attempt=1)
    p.end()
    p.checkpoint()
    assert list(p.store.scan(table.PENDING)) == []
    p.crash()
    assert p.asked(Execute) == []
    assert p.run().status == "completed"


def test_public_event_numbers_have_no_gap_after_a_retry_of_the_run() -> None:
    p = Partition(boom)
    run = p.request(boom)
    p.end()
    p.end()
    events = [event for row in run.history for event in h.public_events(row)]
    assert [event.seq for event in events] == [1, 2, 3]
    assert run.seq == 3
