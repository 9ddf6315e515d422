"""W3: one run with many steps at once: `parallel`, and a large `batch`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from benchmarks import load
from benchmarks.figures import Figures, Finding
from benchmarks.processors import Processor
from benchmarks.stage import Stage, cpu_figures
from benchmarks.work import Work


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    sizes = stage.sizes
    processor = stage.processor()
    processor.start(stage.partitions)
    async with load.session() as client:
        for _ in range(3):
            await load.run(client, processor.url, "fan_out", n=sizes.fan_out)
        wide = await _timed(stage, processor, client, "fan_out", sizes.fan_out)
        yield Finding(f"{sizes.fan_out:,} parallel steps", wide)
        await load.run(client, processor.url, "batch", n=sizes.batch // 10, at_once=sizes.batch_at_once)
        batch = await _timed(stage, processor, client, "batch", sizes.batch, at_once=sizes.batch_at_once)
        yield Finding(f"batch of {sizes.batch:,}, {sizes.batch_at_once:,} at once", batch)
    processor.kill()


async def _timed(
    stage: Stage, processor: Processor, client: aiohttp.ClientSession, workflow: str, n: int, **more: Any
) -> Figures:
    watch, began = stage.watch(processor=processor), time.perf_counter()
    done = await load.run(client, processor.url, workflow, n=n, **more)
    seconds = time.perf_counter() - began
    if done != n:
        raise load.RequestFailed(f"{workflow} of {n} did {done}")
    return {"wall_ms": seconds * 1e3, "steps_per_s": n / seconds} | cpu_figures(watch.stop(), n, "step")


WORK = Work("W3", "Fan-out", measure)
