"""What a user's type checker makes of the public names."""

from __future__ import annotations

from pathlib import Path

from mypy import api

CODE = """
import asyncio
from typing import assert_type

from agnt5 import BatchResult, FunctionContext, WorkflowContext, function, workflow


@function
async def price(ctx: FunctionContext, sku: str) -> float:
    return 1.0


@function(retries=1)
def label(sku: str) -> str:
    return sku


@workflow
async def child(ctx: WorkflowContext, n: int) -> int:
    return n


@workflow
async def flow(ctx: WorkflowContext) -> None:
    async with asyncio.TaskGroup() as group:
        step = group.create_task(ctx.step(price, "a"))
        called = group.create_task(ctx.call(child, 1))
        group.create_task(ctx.sleep(1))
        group.create_task(ctx.wait_for_signal("go"))
        group.create_task(ctx.state.set("a", 1))
        group.create_task(ctx.parallel(ctx.step(price, "a"), label("b")))
    assert_type(step.result(), float)
    assert_type(called.result(), int)
    assert_type(await ctx.step(label, "a"), str)
    assert_type(await ctx.run(label.options(retries=2), "a"), str)
    assert_type(await ctx.map(price, ["a"]), list[float])
    assert_type(await ctx.batch(label, ["a"]), BatchResult[str])
    anything: dict[str, int] = await ctx.step("registered", 1)
    handle = await asyncio.create_task(ctx.start(child, n=1))
    await asyncio.create_task(handle.result())
"""


def test_operations_handed_to_tasks_type_check_and_keep_their_results_types(tmp_path: Path) -> None:
    user = tmp_path / "app.py"
    user.write_text(CODE)
    told, wrong, status = api.run(["--strict", f"--cache-dir={tmp_path}", "--config-file=", str(user)])
    assert status == 0, told + wrong
