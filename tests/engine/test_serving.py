"""What commands and reads over the real engine are told."""

from __future__ import annotations

import asyncio

from agnt5 import WorkflowContext, workflow
from agnt5_engine.ports import Refused
from tests.engine.conftest import Engine


@workflow
async def waits_for_go(ctx: WorkflowContext) -> object:
    return await ctx.wait_for_signal("go")


async def test_two_signals_of_one_id_sent_at_once_are_both_answered(engine: Engine) -> None:
    run_id = await engine.submit("waits_for_go")
    async with asyncio.timeout(5):
        await asyncio.gather(*(engine.processor.signal(run_id, "go", 1, "same") for _ in range(3)))


async def test_signals_of_one_id_for_two_runs_are_each_told_their_own_runs_verdict(engine: Engine) -> None:
    ended = await engine.submit("waits_for_go", session_id="s")
    await engine.processor.signal(ended, "go", 1, None)
    await engine.processor.finished(ended)
    waiting = await engine.submit("waits_for_go", session_id="s")
    async with asyncio.timeout(5):
        told = await asyncio.gather(
            *(engine.processor.signal(run_id, "go", 1, "same") for run_id in (ended, waiting)), return_exceptions=True
        )
    assert isinstance(told[0], Refused)
    assert told[0].reason == "ended"
    assert told[1] is None
