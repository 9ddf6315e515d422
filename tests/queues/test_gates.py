"""Limits of queues and functions where the steps run in the processor."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from agnt5.function import function
from agnt5.workflow import workflow
from agnt5_engine.limits import Limit
from agnt5_engine.partition.gates import Gates
from agnt5_engine.ports import StartRequest
from tests.triggers.engine import processor, runs_of, until


class Turn:
    def __init__(self, order: list[str], name: str, wanted: bool = True) -> None:
        self.order = order
        self.name = name
        self.is_wanted = wanted
        self.dropped = False

    def wanted(self) -> bool:
        return self.is_wanted

    def begin(self) -> None:
        self.order.append(self.name)

    def drop(self) -> None:
        self.dropped = True


def gates(queues: dict[str, Limit], functions: dict[str, Limit] | None = None) -> Gates:
    return Gates(queues.get, (functions or {}).get)


async def test_what_nothing_limits_has_no_gate() -> None:
    assert gates({"gpu": Limit(1)}).of("cpu", "f") is None
    assert gates({"gpu": Limit(1)}).of(None, "f") is None


async def test_a_queue_lets_so_many_run_at_once_whatever_their_function() -> None:
    order: list[str] = []
    limits = gates({"gpu": Limit(2)})
    one, other = limits.of("gpu", "f"), limits.of("gpu", "g")
    assert one is not None
    assert other is not None

    for i in range(3):
        one.submit(Turn(order, f"f{i}"))
        other.submit(Turn(order, f"g{i}"))
    assert order == ["f0", "g0"]
    one.done()
    one.done()
    other.done()
    assert len(order) == 5
    assert Counter(name[0] for name in order).most_common()[-1][1] >= 2  # neither starves


async def test_a_function_that_is_held_back_does_not_hold_back_others_of_its_queue() -> None:
    order: list[str] = []
    limits = gates({"gpu": Limit(10)}, {"slow": Limit(1)})
    slow, fast = limits.of("gpu", "slow"), limits.of("gpu", "fast")
    assert slow is not None
    assert fast is not None

    for i in range(3):
        slow.submit(Turn(order, f"slow{i}"))
    fast.submit(Turn(order, "fast"))

    assert order == ["slow0", "fast"]


async def test_a_turn_that_is_not_wanted_any_more_takes_nobodys_place() -> None:
    order: list[str] = []
    gate = gates({"gpu": Limit(1, 0.001)}).of("gpu", "f")
    assert gate is not None

    gone = [Turn(order, "gone", wanted=False) for _ in range(100)]
    for turn in gone:
        gate.submit(turn)
    gate.submit(Turn(order, "wanted"))

    assert order == ["wanted"]
    assert all(turn.dropped for turn in gone)
    gate.close()


async def test_a_rate_spreads_beginnings_evenly() -> None:
    begun: list[float] = []

    class Timed(Turn):
        def begin(self) -> None:
            begun.append(time.monotonic())

    gate = gates({"api": Limit(None, 100.0)}).of("api", "f")
    assert gate is not None
    for _ in range(30):
        gate.submit(Timed([], ""))
    await until(lambda: len(begun) == 30)

    assert begun[-1] - begun[0] >= 0.23  # 30 at 100/s, but for the few of a burst
    gate.close()


async def test_limits_hold_for_the_steps_of_a_processor(tmp_path: Path) -> None:
    now, most = Counter[str](), Counter[str]()

    async def work(name: str) -> None:
        now[name] += 1
        most[name] = max(most[name], now[name])
        await asyncio.sleep(0.02)
        now[name] -= 1

    @function(queue="gpu")
    async def render(n: int) -> None:
        await work("gpu")

    @function
    async def charge(n: int) -> None:
        await work("charge")

    @function
    async def free(n: int) -> None:
        await work("free")

    @workflow
    async def job(ctx: Any) -> int:
        done = await ctx.parallel(*(ctx.step(f, n) for n in range(6) for f in (render, charge, free)))
        return len(done)

    limits = {"queue_limits": {"gpu": {"concurrency": 2}}, "function_limits": {"charge": {"concurrency": "1"}}}
    async with processor(tmp_path, **limits) as engine:
        for n in range(2):
            request = StartRequest(workflow="job", input=b"{}", trigger={"kind": "http"}, dedupe=str(n))
            await engine.start(request)
        assert [run.output for run in await runs_of(engine, "job", 2)] == [18, 18]

    assert most["gpu"] == 2
    assert most["charge"] == 1
    assert most["free"] > 2
