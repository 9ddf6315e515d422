"""Workflows whose steps a pool executes. Each execution leaves a line in a file: what began or ended, where."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from agnt5.function import function
from agnt5.functioncontext import FunctionContext
from agnt5.workflow import workflow


def note(file: str, what: str, name: str) -> None:
    with open(file, "a", encoding="utf-8") as out:
        out.write(f"{what} {name} {os.getpid()}\n")


@function(queue="pool", retries=1)
async def work(ctx: FunctionContext, file: str, name: str, seconds: float) -> int:
    note(file, "begin", name)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note(file, "cancel", name)
        raise
    note(file, "end", name)
    return os.getpid()


@function(queue="pool", retries=3, backoff="constant")
async def flaky(ctx: FunctionContext, file: str, name: str) -> int:
    note(file, "begin", name)
    if ctx.attempt < 2:
        raise ValueError(f"attempt {ctx.attempt}")
    return ctx.attempt


@function(queue="pool", retries=1)
async def deadly(file: str, name: str) -> None:
    note(file, "begin", name)
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def one(ctx: Any, file: str, name: str, seconds: float = 0.0) -> int:
    pid: int = await ctx.step(work, file, name, seconds)
    return pid


@workflow
async def retried(ctx: Any, file: str, name: str) -> int:
    attempt: int = await ctx.step(flaky, file, name)
    return attempt


@workflow
async def poisonous(ctx: Any, file: str, name: str) -> None:
    await ctx.step(deadly, file, name)
