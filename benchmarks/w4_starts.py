"""W4: a storm of starts: `submit` over HTTP, and events on a topic.

A start over HTTP counts when its 202 has come, so when it is durable. A start by an event counts when the run's code
has begun, which is after its request is durable; those runs have no steps, so that starting is what is measured.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.figures import Finding, milliseconds
from benchmarks.stage import Stage, cpu_figures
from benchmarks.tally import BEGUN, DONE
from benchmarks.work import Work


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    yield await _over_http(stage)
    stage.renew(stage.partitions)
    yield await _by_events(stage)


async def _over_http(stage: Stage) -> Finding:
    sizes = stage.sizes
    processor = stage.processor()
    processor.start(stage.partitions)
    await load.submit(processor.url, "one", [{"n": 0}] * sizes.warm_runs, sizes.connections)
    await stage.until(DONE, sizes.warm_runs, processor)
    watch, began = stage.watch(processor=processor), time.perf_counter()
    took = await load.submit(processor.url, "one", [{"n": n} for n in range(sizes.submits)], sizes.connections)
    seconds = time.perf_counter() - began
    await stage.until(DONE, sizes.warm_runs + sizes.submits, processor)
    done = time.perf_counter() - began
    spent = watch.stop()
    processor.kill()
    figures = {"starts_per_s": sizes.submits / seconds} | milliseconds(took, "submit_") | {"all_done_s": done}
    name = f"{sizes.submits:,} submits over HTTP, {sizes.connections} connections, 1 step each"
    return Finding(name, figures | cpu_figures(spent, sizes.submits, "run"))


async def _by_events(stage: Stage) -> Finding:
    sizes = stage.sizes
    warm = sizes.warm_runs
    processor = stage.processor()
    await stage.make_topic("starts")
    events = [{"n": n} for n in range(sizes.events)]
    if stage.broker is None:
        await stage.feed("starts", [{"n": 0}] * warm + events)
        processor.launch()
    else:
        processor.start(stage.partitions)
        await stage.feed("starts", [{"n": 0}] * warm)
    await stage.until(BEGUN, warm, processor)
    before, watch, began = stage.readings.count(BEGUN), stage.watch(processor=processor), time.perf_counter()
    if stage.broker is not None:
        await stage.feed("starts", events)
    await stage.until(BEGUN, warm + sizes.events, processor)
    count, seconds = stage.readings.count(BEGUN) - before, time.perf_counter() - began
    spent = watch.stop()
    processor.kill()
    if not count:
        raise RuntimeError("all runs had begun before the clock started: measure more events")
    figures = {"starts_per_s": count / seconds} | cpu_figures(spent, count, "run")
    return Finding(f"{sizes.events:,} events on a topic, no steps", figures)


WORK = Work("W4", "Start storm", measure)
