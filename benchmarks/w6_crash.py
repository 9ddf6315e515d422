"""W6: kill -9 with runs in flight: restarted in place, and taken over by a second processor.

Every step writes down when it begins. A run is moving again with the first step it begins after the kill. A step that
was being executed at the kill is executed again, as it must be; one whose successor had begun must not be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from benchmarks import load
from benchmarks.figures import Figures, Finding
from benchmarks.processors import Processor
from benchmarks.stage import Stage
from benchmarks.tally import DONE, Execution
from benchmarks.work import Work

WAIT = 180.0


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    yield await _restarted(stage)
    if stage.broker is not None:
        stage.renew(stage.partitions)
        yield await _taken_over(stage)


def recovery(executions: Sequence[Execution], killed_at: float, dead: int | None = None) -> Figures:
    """What the log of steps says about a crash. `dead`: only runs that this process had in hand count as recovered."""
    last: dict[str, Execution] = {}
    first: dict[str, float] = {}
    seen: dict[tuple[str, int], int] = {}
    reached: dict[str, int] = {}
    again = 0
    for one in executions:
        seen[one.run, one.step] = seen.get((one.run, one.step), 0) + 1
        again += one.step < reached.get(one.run, 0)
        reached[one.run] = max(one.step, reached.get(one.run, 0))
        if one.time <= killed_at:
            last[one.run] = one
        else:
            first.setdefault(one.run, one.time)
    hit = [run for run, one in last.items() if dead is None or one.pid == dead]
    moving = [first[run] - killed_at for run in hit if run in first]
    figures: Figures = {
        "runs_hit": len(hit),
        "steps_executed_twice": sum(count > 1 for count in seen.values()),
        "completed_steps_executed_again": again,
    }
    if moving:
        figures |= {"first_moving_s": min(moving), "last_moving_s": max(moving)}
    return figures


async def _begin(stage: Stage, processors: Sequence[Processor]) -> None:
    """Runs in flight, each within one of its steps; those steps are the first or second."""
    sizes = stage.sizes
    inputs = [
        {"name": f"run{number}", "n": sizes.steps, "seconds": sizes.step_seconds} for number in range(sizes.in_flight)
    ]
    if stage.broker is None:
        await load.submit(processors[0].url, "logged", inputs, sizes.connections)
    else:
        await stage.feed("logged", inputs)
    everyone = sizes.in_flight
    await stage.until_true(lambda: len({e.run for e in stage.readings.executions()}) >= everyone, processors[0])


async def _finish(stage: Stage, processor: Processor) -> Figures:
    """Let every run come to its end; those that do not are lost."""
    done, runs = stage.readings, stage.sizes.in_flight
    await stage.until_true(
        lambda: len({e.run for e in done.executions() if e.step == stage.sizes.steps - 1}) >= runs, processor, WAIT
    )
    before = done.count(DONE)
    await asyncio.sleep(2 * stage.sizes.step_seconds + 0.5)
    return {"runs_lost": max(0, runs - max(before, done.count(DONE)))}


async def _restarted(stage: Stage) -> Finding:
    processor = stage.processor()
    await stage.make_topic("logged")
    processor.start(stage.partitions)
    await _begin(stage, [processor])
    processor.kill()
    killed_at = time.time()
    ready = processor.start(stage.partitions)
    lost = await _finish(stage, processor)
    processor.kill()
    figures = {"ready_s": ready} | recovery(stage.readings.executions(), killed_at) | lost
    return Finding(f"kill -9 with {stage.sizes.in_flight} runs in flight, restarted at once", figures)


async def _taken_over(stage: Stage) -> Finding:
    one, two = stage.processor(), stage.processor()
    await stage.make_topic("logged")
    one.start(stage.partitions)
    two.launch()
    half = stage.partitions // 2
    await stage.until_true(
        lambda: two.caught_up() >= half and one.caught_up() + two.caught_up() >= stage.partitions, two
    )
    await _begin(stage, [one, two])
    pid = one.pid
    one.kill()
    killed_at = time.time()
    lost = await _finish(stage, two)
    two.kill()
    figures = recovery(stage.readings.executions(), killed_at, dead=pid) | lost
    if "last_moving_s" in figures:
        figures["last_moving_after_session_timeout_s"] = figures["last_moving_s"] - stage.sizes.session_timeout
    figures["session_timeout_s"] = stage.sizes.session_timeout
    return Finding(f"kill -9 with {stage.sizes.in_flight} runs in flight on two processors, taken over", figures)


WORK = Work("W6", "Crash", measure)
