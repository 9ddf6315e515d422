"""W1: runs of sequential steps, started by events on a topic.

On Kafka a plain producer sends the events while the processor waits for them. The embedded log belongs to one
process, so there the events lie in the topic before the processor starts, and the clock starts when it has warmed up on
the first of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.accounting import written_bytes
from benchmarks.figures import Figures, Finding
from benchmarks.processors import Processor
from benchmarks.stage import Stage, cpu_figures
from benchmarks.tally import DONE, STEPS
from benchmarks.work import Work


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    figures = await steps(stage, stage.sizes.runs)
    yield Finding(f"{stage.sizes.runs:,} runs of {stage.sizes.steps} steps", figures)


async def steps(stage: Stage, runs: int, processes: int = 1) -> Figures:
    """Let processors work the runs off; what that took."""
    warm, event = stage.sizes.warm_runs, {"n": stage.sizes.steps}
    processor = stage.processor(processes)
    await stage.make_topic("steps")
    if stage.broker is None:
        await stage.feed("steps", [event] * (warm + runs))
        processor.launch()
        await stage.until(STEPS, warm * stage.sizes.steps, processor)
    else:
        processor.start(stage.partitions)
        await stage.feed("steps", [event] * warm)
        await stage.until(DONE, warm, processor)
    begun = stage.readings.count(STEPS)
    watch, written, journal = stage.watch(processor=processor), written_bytes(processor.pid), stage.journal_bytes()
    if stage.broker is not None:
        await stage.feed("steps", [event] * runs)
    await stage.until(DONE, warm + runs, processor)
    spent = watch.stop()
    count = stage.readings.count(STEPS) - begun
    if not count:
        raise RuntimeError("all steps were done before the clock started: measure more runs")
    figures = {"steps_per_s": count / spent.seconds} | cpu_figures(spent, count, "step")
    figures |= {f"{name}_cores": spent.cores(name) for name in spent.cpu}
    figures |= _bytes(stage, processor, written, journal, count)
    processor.kill()
    return figures


def _bytes(stage: Stage, processor: Processor, written: int, journal: int | None, count: int) -> Figures:
    """What a step appends on Kafka; what it makes the processor write on the embedded engine."""
    if stage.broker is None:
        return {"written_bytes_per_step": (written_bytes(processor.pid) - written) / count}
    now = stage.journal_bytes()
    return {} if now is None or journal is None else {"appended_bytes_per_step": (now - journal) / count}


WORK = Work("W1", "Sequential steps", measure)
