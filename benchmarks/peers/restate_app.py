"""The works of benchmarks/flows.py written for Restate. Runs in the peer's environment, served by granian.

Plain durable handlers: the lightest thing Restate has for a run of steps.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator"
from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import restate
from restate import Context, Service

from benchmarks.tally import BEGUN, DONE, FOLDER, STEPS, Tally

_TALLY = Tally(Path(os.environ[FOLDER]))
_COUNTS = _TALLY.counts
runs = Service("runs")


async def work(i: int) -> dict[str, object]:
    _COUNTS[STEPS] += 1
    return {"i": i, "ok": True}


async def logged_work(run: str, i: int, seconds: float) -> dict[str, object]:
    _TALLY.log_step(run, i)
    await asyncio.sleep(seconds)
    return {"i": i, "ok": True}


@runs.handler()
async def steps(ctx: Context, input: dict[str, Any]) -> int:
    for i in range(input["n"]):
        await ctx.run_typed("work", work, i=i)
    _COUNTS[DONE] += 1
    return int(input["n"])


@runs.handler()
async def timed(ctx: Context, input: dict[str, Any]) -> list[float]:
    took = []
    for i in range(input["n"]):
        began = time.perf_counter()
        await ctx.run_typed("work", work, i=i)
        took.append(time.perf_counter() - began)
    return took


@runs.handler()
async def fan_out(ctx: Context, input: dict[str, Any]) -> int:
    futures = [ctx.run_typed("work", work, i=i) for i in range(input["n"])]
    await restate.gather(*futures)
    return len([await future for future in futures])


@runs.handler()
async def one(ctx: Context, input: dict[str, Any]) -> int:
    _COUNTS[BEGUN] += 1
    await ctx.run_typed("work", work, i=input["n"])
    _COUNTS[DONE] += 1
    return int(input["n"])


@runs.handler()
async def sleeper(ctx: Context, input: dict[str, Any]) -> bool:
    _COUNTS[BEGUN] += 1
    wait = await ctx.run_typed("wait", _until, due=input["due"])
    await ctx.sleep(timedelta(seconds=wait))
    _TALLY.log_woken(time.time() - input["due"])
    return True


async def _until(due: float) -> float:
    """Restate has no clock that is the same in a replay."""
    return max(0.0, due - time.time())


@runs.handler()
async def logged(ctx: Context, input: dict[str, Any]) -> int:
    for i in range(input["n"]):
        await ctx.run_typed("work", logged_work, run=input["name"], i=i, seconds=input["seconds"])
    _COUNTS[DONE] += 1
    return int(input["n"])


app = restate.app(services=[runs])
