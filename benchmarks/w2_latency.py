"""W2: one run at a time, over HTTP `run`: how long a run and each of its steps take, beside the log's own ack."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.figures import Finding, milliseconds
from benchmarks.stage import Stage, cpu_figures
from benchmarks.w0_yardstick import ack_times
from benchmarks.work import Work


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    count, n = stage.sizes.one_at_a_time, stage.sizes.steps
    processor = stage.processor()
    await stage.make_topic("steps")
    processor.start(stage.partitions)
    runs: list[float] = []
    steps: list[float] = []
    async with load.session() as client:
        for _ in range(max(3, count // 5)):
            await load.run(client, processor.url, "timed", n=n)
        acks = await ack_times(stage, stage.sizes.acks // 4)
        watch = stage.watch(processor=processor)
        for _ in range(count):
            began = time.perf_counter()
            steps += await load.run(client, processor.url, "timed", n=n)
            runs.append(time.perf_counter() - began)
        spent = watch.stop()
        acks += await ack_times(stage, stage.sizes.acks // 4)
    processor.kill()
    figures = milliseconds(runs, "run_") | milliseconds(steps, "step_") | milliseconds(acks, "ack_")
    figures["step_p50_over_ack_p50"] = figures["step_p50_ms"] / figures["ack_p50_ms"]
    figures["run_p50_over_ack_p50"] = figures["run_p50_ms"] / figures["ack_p50_ms"]
    yield Finding(f"runs of {n} steps, one at a time", figures | cpu_figures(spent, count * n, "step"))


WORK = Work("W2", "Latency", measure)
