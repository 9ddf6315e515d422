"""A run that kills its processor is parked; its neighbours go on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx

from agnt5_engine import watchdog
from tests.engine.processes import ProcessorProcess

APP = """
import os
from agnt5 import FunctionContext, WorkflowContext, function, workflow

@function
async def dies(ctx: FunctionContext) -> None:
    os._exit(9)

@function
async def lives(ctx: FunctionContext) -> str:
    return "alive"

@workflow
async def poisoned_step(ctx: WorkflowContext) -> None:
    await ctx.step(dies)

@workflow
async def poisoned_code(ctx: WorkflowContext) -> None:
    await ctx.step(lives)
    os._exit(9)

@workflow
async def innocent(ctx: WorkflowContext) -> str:
    await ctx.wait_for_signal("go")
    return await ctx.step(lives)
"""


def _parks(tmp_path: Path, workflow: str) -> None:
    module = tmp_path / "poison_app.py"
    module.write_text(APP)
    processor = ProcessorProcess(module, tmp_path / "data", partitions=1).start()
    innocent = httpx.post(f"{processor.url}/v1/workflows/innocent/submit", json={}).json()["run_id"]
    bad = httpx.post(
        f"{processor.url}/v1/workflows/{workflow}/submit", json={}, headers={"Idempotency-Key": "one"}, timeout=5
    ).json()["run_id"]
    deaths = 0
    while True:
        try:
            processor.wait_ready(3)
            run = httpx.get(f"{processor.url}/v1/runs/{bad}", timeout=5).json()
            if run.get("status") == "paused":
                break
            time.sleep(0.1)
        except (RuntimeError, TimeoutError, httpx.HTTPError):
            if processor.process is not None and processor.process.poll() is not None:
                deaths += 1
                assert deaths < 12, processor.tail()
                processor.start(wait=False)
    assert run["pause"]["reason"] == "poison"
    assert "killed its processor" in run["pause"]["detail"]
    httpx.post(f"{processor.url}/v1/runs/{innocent}/signals/go", json={"payload": None}).raise_for_status()
    end = time.monotonic() + 10
    while httpx.get(f"{processor.url}/v1/status/{innocent}").json()["status"] != "completed":
        assert time.monotonic() < end, processor.tail()
        time.sleep(0.05)
    processor.stop()


def test_a_step_that_kills_its_processor_is_parked_and_its_neighbour_goes_on(tmp_path: Path) -> None:
    _parks(tmp_path, "poisoned_step")


def test_workflow_code_that_kills_its_processor_is_parked_and_its_neighbour_goes_on(tmp_path: Path) -> None:
    _parks(tmp_path, "poisoned_code")


LOOPS = """
from agnt5 import WorkflowContext, workflow

@workflow
async def spins(ctx: WorkflowContext) -> None:
    while True:
        pass
"""


def test_an_endless_loop_in_workflow_code_is_named_and_ends_the_process(tmp_path: Path) -> None:
    module = tmp_path / "spin_app.py"
    module.write_text(LOOPS)
    processor = ProcessorProcess(module, tmp_path / "data", partitions=1).start()
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{processor.url}/v1/workflows/spins/submit", json={}, timeout=1)
    assert processor.process is not None
    assert processor.process.wait(watchdog.END_SECONDS + 20) == watchdog.EXIT_CODE
    log = processor.log.read_text()
    assert "loop.blocked" in log
    assert '"workflow": "spins"' in log
