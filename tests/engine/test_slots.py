"""Every step that took one of the process's slots gives it back, however it ends, and leaves nothing in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.replay.protocol import InPlaceCall
from agnt5_engine.partition.calls import Calls
from tests.engine.conftest import Engine


@function(retries={"max_attempts": 2, "initial_interval_ms": 3_600_000})
async def fails_once(ctx: FunctionContext) -> int:
    if ctx.attempt == 0:
        raise ValueError
    return 1


@function
async def charge(ctx: FunctionContext) -> int:
    return 1


LEFT: ContextVar[str | None] = ContextVar("left", default=None)


@function
async def leaves(ctx: FunctionContext) -> str | None:
    found = LEFT.get()
    LEFT.set("something")
    await asyncio.sleep(0)
    return found


@workflow
async def leaves_twice(ctx: WorkflowContext) -> list:
    return list(await ctx.parallel(ctx.step(leaves), ctx.step(leaves)))


@workflow
async def tries_later(ctx: WorkflowContext) -> int:
    return await ctx.step(fails_once)


@workflow
async def charges(ctx: WorkflowContext) -> int:
    return await ctx.step(charge)


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await Engine(tmp_path, step_concurrency=1).start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_a_step_that_is_given_up_before_its_code_has_begun_keeps_no_slot(narrow: Engine) -> None:
    run_id = await narrow.submit("tries_later")
    owner = narrow.processor.local.owner(run_id)

    async def failed() -> bool:
        return owner.state.runs[run_id].pending["0"].retry_at is not None

    await narrow.until(failed)
    owner.state.runs[run_id].pending["0"].retry_at = None  # an hour later
    owner.steps.execute(run_id, "0")
    owner.steps.abandon(run_id, "0")
    assert (await narrow.run("charges")).output == 1
    assert narrow.processor._slots.running == 0
    assert owner.state.runs[run_id].executing == 0


async def test_what_a_step_leaves_in_its_context_is_not_there_for_the_step_that_waited_for_its_slot(
    narrow: Engine,
) -> None:
    assert (await narrow.run("leaves_twice")).output == [None, None]


async def test_an_in_place_call_that_is_interrupted_before_it_has_begun_is_forgotten() -> None:
    finished: list[str] = []
    calls = Calls(lambda key, *_: finished.append(key))

    async def work() -> None: ...

    calls.run("a", InPlaceCall(0, "work", 1000, work))
    calls.interrupt("a")
    calls.run("b", InPlaceCall(0, "work", 1000, work))
    while calls._tasks:
        await asyncio.sleep(0)
    assert finished == ["b"]
