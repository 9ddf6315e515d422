"""Every step that took one of the process's slots gives it back, however it ends, and leaves nothing in it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path

import httpx
import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.replay.protocol import InPlaceCall
from agnt5_engine.partition.calls import Calls
from agnt5_engine.runs.model import Run
from tests.engine.conftest import Engine
from tests.engine.processes import ProcessorProcess


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


RUNNING: list[int] = []


@function(retries={"max_attempts": 2, "initial_interval_ms": 3_600_000})
async def beside(ctx: FunctionContext, fail: bool) -> int:
    """How many others run."""
    if fail and ctx.attempt == 0:
        raise ValueError
    RUNNING.append(1)
    await asyncio.sleep(0.01)
    found = len(RUNNING) - 1
    RUNNING.pop()
    return found


@workflow
async def looks_beside(ctx: WorkflowContext, times: int = 1, fail: bool = False) -> list:
    return list(await ctx.parallel(*(ctx.step(beside, fail) for _ in range(times))))


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


async def tried(engine: Engine, run_id: str) -> Run:
    """The run, when its first step waits for its second attempt."""
    run = engine.processor.local.owner(run_id).state.runs[run_id]

    async def failed() -> bool:
        return run.pending["0"].retry_at is not None

    await engine.until(failed)
    return run


async def test_a_step_that_is_given_up_before_its_code_has_begun_keeps_no_slot(narrow: Engine) -> None:
    run_id = await narrow.submit("tries_later")
    owner = narrow.processor.local.owner(run_id)
    (await tried(narrow, run_id)).pending["0"].retry_at = None  # an hour later
    owner.steps.execute(run_id, "0")
    owner.steps.abandon(run_id, "0")
    assert (await narrow.run("charges")).output == 1
    assert narrow.processor._slots.running == 0
    assert owner.state.runs[run_id].executing == 0


async def test_a_step_that_had_the_process_to_itself_leaves_its_functions_limit_as_it_was(tmp_path: Path) -> None:
    limited = await Engine(tmp_path, function_limits={"beside": {"concurrency": 1}}).start()
    try:
        run_id = await limited.submit("looks_beside", b'{"fail": true}')
        owner = limited.processor.local.owner(run_id)
        step = (await tried(limited, run_id)).pending["0"]
        step.retry_at, step.restarts = None, 3  # an hour later, when as many owners have died with it
        owner.steps.execute(run_id, "0")
        assert (await asyncio.wait_for(limited.processor.finished(run_id), 30)).output == [0]
        assert (await limited.run("looks_beside", b'{"times": 4}')).output == [0, 0, 0, 0]
    finally:
        await limited.stop()


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


HANGS = """
import pathlib
import threading
from agnt5 import WorkflowContext, function, workflow

@function
def hangs() -> None:
    pathlib.Path(__file__).with_name("begun").touch()
    threading.Event().wait()

@workflow
async def waits(ctx: WorkflowContext) -> None:
    await ctx.step(hangs)
"""


def test_a_plain_function_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    module = tmp_path / "hangs_app.py"
    module.write_text(HANGS)
    with ProcessorProcess(module, tmp_path / "data") as processor:
        httpx.post(f"{processor.url}/v1/workflows/waits/submit", json={}, timeout=30).raise_for_status()
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        processor.signal(signal.SIGTERM)
        assert processor.process is not None
        assert processor.process.wait(20) == 0
