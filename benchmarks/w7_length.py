"""W7: whether cost grows: with the length of a run, and with how many runs have finished before a start."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.figures import Finding
from benchmarks.stage import Stage, cpu_figures
from benchmarks.tally import DONE
from benchmarks.work import Work

_ENOUGH = 1_000
"""Steps over which a short run is repeated, so that its CPU time can be told."""


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    async for finding in _lengths(stage):
        yield finding
    counts = stage.sizes.finished + (stage.sizes.heavy_finished if stage.heavy else ())
    for count in counts:
        stage.renew(stage.partitions)
        yield await _start_up(stage, count)


async def _lengths(stage: Stage) -> AsyncIterator[Finding]:
    processor = stage.processor()
    processor.start(stage.partitions)
    async with load.session() as client:
        for _ in range(20):
            await load.run(client, processor.url, "steps", n=10)
        for n in stage.sizes.lengths:
            times = max(1, min(_ENOUGH, stage.sizes.runs) // n)
            watch, began = stage.watch(processor=processor), time.perf_counter()
            for _ in range(times):
                await load.run(client, processor.url, "steps", n=n)
            seconds = time.perf_counter() - began
            figures = {"wall_us_per_step": seconds / times / n * 1e6} | cpu_figures(watch.stop(), times * n, "step")
            yield Finding(f"one run of {n:,} steps", figures)
    processor.kill()


async def _start_up(stage: Stage, count: int) -> Finding:
    """With so many finished runs: after kill -9 on the same disk, and on an empty one."""
    processor = stage.processor(instance_id="benchmark")
    await stage.make_topic("starts")
    await stage.feed("starts", ({"n": n} for n in range(count)))
    processor.start(stage.partitions)
    await stage.until(DONE, count, processor, 1_200)
    await asyncio.sleep(stage.sizes.settle)
    processor.kill()
    figures = {"start_same_disk_s": processor.start(stage.partitions)}
    processor.kill()
    if stage.broker is not None:
        shutil.rmtree(stage.data / "state")
        figures["start_empty_disk_s"] = processor.start(stage.partitions)
        processor.kill()
    return Finding(f"start with {count:,} finished runs", figures)


WORK = Work("W7", "Cost over length", measure)
