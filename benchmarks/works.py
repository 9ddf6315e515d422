"""All works, in order, and how their repeats are done."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks import (
    w0_yardstick,
    w1_steps,
    w2_latency,
    w3_fan_out,
    w4_starts,
    w5_sleepers,
    w6_crash,
    w7_length,
    w8_scaling,
)
from benchmarks.accounting import loop_ns
from benchmarks.results import Case, Results
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage
from benchmarks.warming import warm_broker
from benchmarks.work import Work

WORKS = {
    module.WORK.id: module.WORK
    for module in (
        w0_yardstick, w1_steps, w2_latency, w3_fan_out, w4_starts, w5_sleepers, w6_crash, w7_length, w8_scaling,
    )
}  # fmt: skip


def measure(
    works: Sequence[Work], side: str, sizes: Sizes, results: Results, folder: Path, *, fresh_broker: bool = False
) -> bool:
    """Measure works on a side (`kafka`, `kafka, flush=1`, `embedded`). A repeat that fails is written down and the rest
    goes on; returns whether none did.

    They share a broker (with `fresh_broker` each repeat has its own); each repeat has its own processors and topics."""
    good = True
    with contextlib.nullcontext() if fresh_broker else warm_broker(folder, sizes, side) as shared:
        for work in works:
            if side.partition(",")[0] not in work.transports:
                continue
            began = time.monotonic()
            for repeat in range(1, sizes.repeats + 1):
                with warm_broker(folder, sizes, side) if fresh_broker else contextlib.nullcontext(shared) as broker:
                    good &= _repeat(work, side, Stage(sizes, broker, folder, repeat), results)
            results.note(**{f"seconds {work.id} {side}": round(time.monotonic() - began, 1)})
    return good


def _repeat(work: Work, side: str, stage: Stage, results: Results) -> bool:
    gc.collect()
    try:
        uvloop.run(_record(work, side, stage, results))
    except Exception as error:
        results.failed(work.id, side, stage.number, error)
        return False
    return True


async def _record(work: Work, side: str, stage: Stage, results: Results) -> None:
    """Write down each finding as it comes: what comes after it may fail."""
    pace = {"python_loop_ns": loop_ns()}
    try:
        async for finding in work.measure(stage):
            results.add(Case(work.id, side, finding.case), stage.number, finding.figures | pace)
    finally:
        await stage.close()
