"""`python -m benchmarks shares [--write]`: where the processor's time goes, for a step and for a start over HTTP.

On Kafka, at full load: the work of W1, and the submits of W4 with workflows that only begin and end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks import kafka, load
from benchmarks.durability import SIDES
from benchmarks.options import scratch
from benchmarks.processors import Processor
from benchmarks.report import PAGE, replaced
from benchmarks.results import machine
from benchmarks.sampler import OTHER, PLACES, WHOLE
from benchmarks.sizes import DEFAULT
from benchmarks.stage import Stage
from benchmarks.tally import DONE, STEPS
from benchmarks.warming import warm_broker

Shares = tuple[dict[str, float], int]
"""Microseconds by part, and how many samples that is from."""
SAMPLES = "samples.json"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks shares", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    options = parser.parse_args(arguments)
    if (reason := kafka.missing()) is not None:
        parser.error(reason)
    with scratch() as folder, warm_broker(folder, DEFAULT, "kafka") as broker:
        step = asyncio.run(_measured(Stage(DEFAULT, broker, folder), _steps))
        submit = asyncio.run(_measured(Stage(DEFAULT, broker, folder), _submits))
    body = _table(step, submit)
    print(body)
    if options.write:
        PAGE.write_text(replaced(PAGE.read_text(), "shares", body, by="shares"))
        print(f"wrote {PAGE}", file=sys.stderr)
    return 0


async def _measured(stage: Stage, work: Callable[[Stage], Awaitable[Shares]]) -> Shares:
    try:
        return await work(stage)
    finally:
        await stage.close()


async def _steps(stage: Stage) -> Shares:
    sizes, processor = stage.sizes, stage.processor(samples=stage.data / SAMPLES)
    await stage.make_topic("steps")
    processor.start(stage.partitions)
    event = {"n": sizes.steps}
    await stage.feed("steps", [event] * sizes.warm_runs)
    await stage.until(DONE, sizes.warm_runs, processor)
    before, watch = stage.readings.count(STEPS), stage.watch(processor=processor)
    os.kill(processor.pid, signal.SIGUSR1)
    await stage.feed("steps", [event] * sizes.runs)
    await stage.until(DONE, sizes.warm_runs + sizes.runs, processor)
    spent = watch.stop()
    count = stage.readings.count(STEPS) - before
    return _shares(stage, processor, spent.cpu["processor"] / count * 1e6)


async def _submits(stage: Stage) -> Shares:
    sizes, processor = stage.sizes, stage.processor(samples=stage.data / SAMPLES)
    await stage.make_topic("starts")
    processor.start(stage.partitions)
    await load.submit(processor.url, "start", [{"n": 0}] * sizes.warm_runs, sizes.connections)
    await stage.until(DONE, sizes.warm_runs, processor)
    watch = stage.watch(processor=processor)
    os.kill(processor.pid, signal.SIGUSR1)
    await load.submit(processor.url, "start", [{"n": 0}] * sizes.submits, sizes.connections)
    await stage.until(DONE, sizes.warm_runs + sizes.submits, processor)
    spent = watch.stop()
    return _shares(stage, processor, spent.cpu["processor"] / sizes.submits * 1e6)


def _shares(stage: Stage, processor: Processor, microseconds: float) -> Shares:
    os.kill(processor.pid, signal.SIGUSR2)
    file = stage.data / SAMPLES
    end = time.monotonic() + 10
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"the processor wrote no samples:\n{processor.tail()}")
        time.sleep(0.05)
    counts: dict[str, int] = json.loads(file.read_text())
    samples = sum(counts.values())
    return {name: count / samples * microseconds for name, count in counts.items()}, samples


def _table(step: Shares, submit: Shares) -> str:
    known = machine()
    out = [
        f"Measured {known['time']} at {known['commit']}: Kafka ({SIDES['kafka']}), one processor, "
        f"{step[1]:,} and {submit[1]:,} samples.",
        "",
        "| Part | A step (W1) | | A start over HTTP | |",
        "|---|---|---|---|---|",
    ]
    names = [name for name, _ in PLACES] + sorted(set(WHOLE.values())) + [OTHER]
    for name in sorted(names, key=lambda name: -step[0].get(name, 0.0)):
        out.append(f"| {name} | " + " | ".join(_cells(found[0], name) for found in (step, submit)) + " |")
    out.append("| together | " + " | ".join(f"{sum(found[0].values()):.1f} us |" for found in (step, submit)) + " |")
    return "\n".join(out)


def _cells(found: dict[str, float], name: str) -> str:
    value = found.get(name, 0.0)
    return f"{value:.1f} us | {value / sum(found.values()) * 100:.0f} %"
