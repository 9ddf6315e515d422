"""What commands and reads over the real engine are told."""

from __future__ import annotations

import asyncio

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5_engine.ports import NotHere, Refused
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


RELEASED = asyncio.Event()


@function
async def held(ctx: FunctionContext) -> None:
    await RELEASED.wait()


@workflow
async def held_in_place(ctx: WorkflowContext) -> None:
    await held(ctx)


async def test_whoever_waits_to_read_a_runs_state_is_told_when_its_partition_moves(engine: Engine) -> None:
    RELEASED.clear()
    run_id = await engine.submit("waits_for_go", session_id="s")
    await engine.submit("held_in_place", session_id="s")
    await engine.restart()  # the run's code is not in memory now, and its session is busy
    reading = asyncio.create_task(engine.processor.state(run_id))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await engine.stop()
    try:
        with pytest.raises(NotHere):
            await asyncio.wait_for(reading, 3)
    finally:
        RELEASED.set()
        await engine.start()


@workflow
async def after_a_call_in_place(ctx: WorkflowContext) -> object:
    await ctx.state.set("a", await quick(ctx))
    return await ctx.wait_for_signal("go")


@function
async def quick(ctx: FunctionContext) -> int:
    return 7


async def test_state_set_after_a_call_in_place_can_be_read_after_a_restart(engine: Engine) -> None:
    run_id = await engine.submit("after_a_call_in_place")

    async def waits() -> bool:
        return bool((await engine.processor.run(run_id)).waiting_on)

    await engine.until(waits)
    await engine.restart()
    assert await asyncio.wait_for(engine.processor.state(run_id), 3) == {"a": 7}
