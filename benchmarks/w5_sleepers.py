"""W5: many runs that sleep and are due in the same second; the processor is killed and restarted in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.accounting import rss_bytes
from benchmarks.figures import Finding, milliseconds
from benchmarks.processors import Processor
from benchmarks.stage import Stage
from benchmarks.tally import BEGUN
from benchmarks.work import Work

_MEGABYTE = 2**20


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    yield await _sleep(stage, stage.sizes.sleepers)
    if stage.heavy:
        stage.renew(stage.partitions)
        yield await _sleep(stage, stage.sizes.heavy_sleepers)


async def _sleep(stage: Stage, count: int) -> Finding:
    warm = max(1, count // 20)
    processor = stage.processor()
    await stage.make_topic("sleeps")
    startup = processor.start(stage.partitions)
    began = time.perf_counter()
    await _start(stage, processor, warm, time.time() + 1)
    await stage.until(BEGUN, warm, processor)
    a_run = (time.perf_counter() - began) / warm
    await stage.until_true(lambda: sum(map(len, stage.readings.woken().values())) >= warm, processor)
    first, begun = set(stage.readings.woken()), stage.readings.count(BEGUN)
    idle = rss_bytes(processor.pid)
    # Due together, after all have begun, settled, and been taken up again by the restarted processor.
    due = time.time() + 1.5 * a_run * count + stage.sizes.settle + 2 * startup + 1
    began = time.perf_counter()
    await _start(stage, processor, count, due)
    await stage.until(BEGUN, begun + count, processor)
    started = time.perf_counter() - began
    await asyncio.sleep(stage.sizes.settle)
    asleep = rss_bytes(processor.pid)
    processor.kill()
    restart = processor.start(stage.partitions)
    spare = due - time.time()
    restarted = rss_bytes(processor.pid)

    def late() -> list[float]:
        return [one for pid, found in stage.readings.woken().items() for one in found[warm if pid in first else 0 :]]

    await stage.until_true(lambda: len(late()) >= count, processor, 120 + max(0.0, spare))
    processor.kill()
    figures = {
        "start_s": started,
        "starts_per_s": count / started,
        "idle_mb": idle / _MEGABYTE,
        "asleep_over_idle_mb": (asleep - idle) / _MEGABYTE,
        "restarted_mb": restarted / _MEGABYTE,
        "restart_s": restart,
        "spare_before_due_s": spare,
    } | milliseconds(late(), "late_")
    return Finding(f"{count:,} sleepers due together", figures)


async def _start(stage: Stage, processor: Processor, count: int, due: float) -> None:
    if stage.broker is None:
        inputs = _inputs(count, due)
        await load.submit(processor.url, "sleeper", inputs, stage.sizes.connections)
    else:
        await stage.feed("sleeps", _inputs(count, due))


def _inputs(count: int, due: float) -> list[dict[str, float]]:
    """Due one after the other within a second, in an order of their own."""
    return [{"due": due + n * 7919 % count / count} for n in range(count)]


WORK = Work("W5", "Sleepers", measure)
