"""The workflows that are measured. A processor loads this module; the rest of the benchmarks never imports it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from agnt5 import WorkflowContext, function, workflow
from agnt5.types import event
from benchmarks import sampler
from benchmarks.tally import BEGUN, DONE, FOLDER, STEPS, Tally

_TALLY = Tally(Path(os.environ[FOLDER]))
_COUNTS = _TALLY.counts
sampler.start()
_TOPICS = os.environ["BENCH_TOPICS"]


@function
async def work(i: int) -> dict[str, object]:
    _COUNTS[STEPS] += 1
    return {"i": i, "ok": True}


@function
async def logged_work(run: str, i: int, seconds: float) -> dict[str, object]:
    _TALLY.log_step(run, i)
    await asyncio.sleep(seconds)
    return {"i": i, "ok": True}


@workflow(triggers=[event(f"{_TOPICS}steps")])
async def steps(ctx: WorkflowContext, n: int) -> int:
    for i in range(n):
        await ctx.step(work, i)
    _COUNTS[DONE] += 1
    return n


@workflow
async def timed(ctx: WorkflowContext, n: int) -> list[float]:
    """Seconds that each step took, as the workflow sees it."""
    took = []
    for i in range(n):
        began = time.perf_counter()
        await ctx.step(work, i)
        took.append(time.perf_counter() - began)
    return took


@workflow
async def fan_out(ctx: WorkflowContext, n: int) -> int:
    return len(await ctx.parallel(*(ctx.step(work, i) for i in range(n))))


@workflow
async def batch(ctx: WorkflowContext, n: int, at_once: int) -> int:
    found = await ctx.batch(work, list(range(n)), max_concurrency=at_once)
    return found.stats.completed_items


@workflow(triggers=[event(f"{_TOPICS}starts")])
async def start(ctx: WorkflowContext, n: int) -> int:
    """A run that only begins and ends."""
    _COUNTS[BEGUN] += 1
    _COUNTS[DONE] += 1
    return n


@workflow
async def one(ctx: WorkflowContext, n: int) -> int:
    _COUNTS[BEGUN] += 1
    await ctx.step(work, n)
    _COUNTS[DONE] += 1
    return n


@workflow(triggers=[event(f"{_TOPICS}sleeps")])
async def sleeper(ctx: WorkflowContext, due: float) -> bool:
    """Sleeps until `due`, a Unix time in seconds."""
    _COUNTS[BEGUN] += 1
    await ctx.sleep(max(0.0, due - ctx.now().timestamp()))
    _TALLY.log_woken(time.time() - due)
    return True


@workflow(triggers=[event(f"{_TOPICS}logged")])
async def logged(ctx: WorkflowContext, name: str, n: int, seconds: float) -> int:
    for i in range(n):
        await ctx.step(logged_work, name, i, seconds)
    _COUNTS[DONE] += 1
    return n
