"""W1 to W6 as both sides can do them: the same runs, started over HTTP, with the same load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks import load
from benchmarks.accounting import Watch, rss_bytes
from benchmarks.figures import Figures, Finding, milliseconds
from benchmarks.peers.side import Side
from benchmarks.sizes import Sizes
from benchmarks.stage import cpu_figures
from benchmarks.tally import BEGUN, DONE
from benchmarks.w6_crash import recovery

CONNECTIONS = 100
_MEGABYTE = 2**20
_SECONDS = 600.0


class Compared(NamedTuple):
    """One work. The sides are compared by `headline`, of which more is better, or less."""

    measure: Callable[[Side, Sizes], Awaitable[Finding]]
    headline: str
    more_is_better: bool


async def steps(side: Side, sizes: Sizes) -> Finding:
    inputs = [{"n": sizes.steps}] * sizes.runs
    async with load.session() as client:
        url = side.url("steps", wait=True)
        await load.posts(client, url, inputs[: sizes.warm_runs], CONNECTIONS)
        watch = Watch(side.roots()).start()
        took = await load.posts(client, url, inputs, CONNECTIONS)
        spent = watch.stop()
    count = sizes.runs * sizes.steps
    figures = {"steps_per_s": count / spent.seconds} | milliseconds(took, "run_") | cpu_figures(spent, count, "step")
    return Finding(f"{sizes.runs:,} runs of {sizes.steps} steps over HTTP, {CONNECTIONS} at once", figures)


async def latency(side: Side, sizes: Sizes) -> Finding:
    runs: list[float] = []
    each: list[float] = []
    url, input = side.url("timed", wait=True), {"n": sizes.steps}
    async with load.session() as client:
        await load.posts(client, url, [input] * max(3, sizes.one_at_a_time // 5), 1)
        watch = Watch(side.roots()).start()
        for _ in range(sizes.one_at_a_time):
            began = time.perf_counter()
            each += side.output(await load.post(client, url, input))
            runs.append(time.perf_counter() - began)
        spent = watch.stop()
    count = sizes.one_at_a_time * sizes.steps
    figures = milliseconds(runs, "run_") | milliseconds(each, "step_") | cpu_figures(spent, count, "step")
    return Finding(f"runs of {sizes.steps} steps, one at a time", figures)


async def fan_out(side: Side, sizes: Sizes) -> Finding:
    n, took = sizes.fan_out, []
    url = side.url("fan_out", wait=True)
    async with load.session() as client:
        await load.posts(client, url, [{"n": n}] * 3, 1)
        watch = Watch(side.roots()).start()
        for _ in range(3):
            began = time.perf_counter()
            done = side.output(await load.post(client, url, {"n": n}))
            took.append(time.perf_counter() - began)
            if done != n:
                raise load.RequestFailed(f"{side.name}: {n} parallel steps gave {done}")
        spent = watch.stop()
    wall = sorted(took)[1]
    figures = {"wall_ms": wall * 1e3, "steps_per_s": n / wall} | cpu_figures(spent, 3 * n, "step")
    return Finding(f"{n:,} parallel steps", figures)


async def starts(side: Side, sizes: Sizes) -> Finding:
    inputs = [{"n": n} for n in range(sizes.submits)]
    url = side.url("one", wait=False)
    async with load.session() as client:
        await load.posts(client, url, inputs[: sizes.warm_runs], sizes.connections)
        warm = min(sizes.warm_runs, sizes.submits)
        await _until(side, lambda: side.readings.count(DONE) >= warm)
        watch, began = Watch(side.roots()).start(), time.perf_counter()
        took = await load.posts(client, url, inputs, sizes.connections)
        seconds = time.perf_counter() - began
        await _until(side, lambda: side.readings.count(DONE) >= warm + sizes.submits)
        done = time.perf_counter() - began
        spent = watch.stop()
    figures = {"starts_per_s": sizes.submits / seconds, "all_done_s": done} | milliseconds(took, "submit_")
    name = f"{sizes.submits:,} submits over HTTP, {sizes.connections} connections, 1 step each"
    return Finding(name, figures | cpu_figures(spent, sizes.submits, "run"))


async def sleepers(side: Side, sizes: Sizes) -> Finding:
    """Without a restart in between: what comes back when is W6."""
    count, warm = sizes.sleepers, max(1, sizes.sleepers // 20)
    url = side.url("sleeper", wait=False)

    def woken() -> list[float]:
        return [late for found in side.readings.woken().values() for late in found]

    async with load.session() as client:
        began = time.perf_counter()
        await load.posts(client, url, [{"due": time.time() + 1}] * warm, sizes.connections)
        await _until(side, lambda: side.readings.count(BEGUN) >= warm)
        a_run = (time.perf_counter() - began) / warm
        await _until(side, lambda: len(woken()) >= warm)
        begun, idle = side.readings.count(BEGUN), _memory(side)
        due = time.time() + 1.5 * a_run * count + sizes.settle + 2
        began = time.perf_counter()
        await load.posts(client, url, [{"due": due}] * count, sizes.connections)
        await _until(side, lambda: side.readings.count(BEGUN) >= begun + count)
    started = time.perf_counter() - began
    await asyncio.sleep(sizes.settle)
    asleep, spare = _memory(side), due - time.time()
    await _until(side, lambda: len(woken()) >= warm + count)
    figures: Figures = {"start_s": started, "starts_per_s": count / started, "spare_before_due_s": spare}
    figures |= {f"{name}_asleep_over_idle_mb": (asleep[name] - idle[name]) / _MEGABYTE for name in idle}
    figures |= milliseconds(sorted(woken(), reverse=True)[:count], "late_")
    return Finding(f"{count:,} sleepers due together", figures)


async def crash(side: Side, sizes: Sizes) -> Finding:
    last = sizes.steps - 1
    inputs = [{"name": f"run{n}", "n": sizes.steps, "seconds": sizes.step_seconds} for n in range(sizes.in_flight)]

    def runs(step: int) -> int:
        return len({one.run for one in side.readings.executions() if one.step >= step})

    async with load.session() as client:
        await load.posts(client, side.url("logged", wait=False), inputs, sizes.connections)
    await _until(side, lambda: runs(0) >= sizes.in_flight)
    side.kill_worker()
    killed_at = time.time()
    await asyncio.to_thread(side.start_worker)
    ready = time.time() - killed_at
    await _until(side, lambda: runs(last) >= sizes.in_flight)
    figures = {"worker_back_s": ready, **recovery(side.readings.executions(), killed_at)}
    return Finding(f"kill -9 of the worker with {sizes.in_flight} runs in flight, restarted at once", figures)


async def _until(side: Side, happened: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not happened():
        side.check()
        if time.monotonic() > end:
            raise TimeoutError(f"{side.name} was not done within {_SECONDS:.0f} s")
        await asyncio.sleep(0.005)


def _memory(side: Side) -> dict[str, int]:
    return {name: rss_bytes(pid) for name, pid in side.roots().items()}


COMPARED = {
    "W1": Compared(steps, "steps_per_s", True),
    "W2": Compared(latency, "run_p50_ms", False),
    "W3": Compared(fan_out, "wall_ms", False),
    "W4": Compared(starts, "starts_per_s", True),
    "W5": Compared(sleepers, "late_p99_ms", False),
    "W6": Compared(crash, "last_moving_s", False),
}
