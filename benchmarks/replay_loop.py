"""What resuming a run costs: microseconds of CPU for one event, from its delivery to the next ask.

    python benchmarks/replay_loop.py [--events N]

Prints one JSON line per case. No I/O, no engine: the replay core alone.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from agnt5 import WorkflowContext, function, registry, workflow
from agnt5.replay.activation import Activation
from agnt5.replay.loop import DeterministicLoop
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import PastEvent, Resolved, RunInfo, ask_digest, ask_key

NOW = 1_700_000_000_000


class Script(Pending[int]):
    """A pending whose end its owner decides: nothing is asked for by itself."""

    __slots__ = ("label",)

    def __init__(self, loop: DeterministicLoop, label: str) -> None:
        super().__init__(loop, None)
        self.label = label

    def _begin(self) -> None:
        pass

    def described(self) -> str:
        return self.label


class NoSession:
    def session_state(self) -> dict[str, bytes]:
        return {}


@function
async def work(x: int) -> int:
    return x


@workflow
async def sequential(ctx: WorkflowContext, steps: int) -> int:
    for i in range(steps):
        await ctx.step(work, i)
    return steps


@workflow
async def sleeps(ctx: WorkflowContext, steps: int) -> int:
    for _ in range(steps):
        await ctx.sleep(1)
    return steps


@workflow
async def fan_out(ctx: WorkflowContext, steps: int) -> int:
    return len(await ctx.parallel(*(ctx.step(work, i) for i in range(steps))))


@workflow
async def batch(ctx: WorkflowContext, steps: int) -> int:
    return (await ctx.batch(work, list(range(steps)))).stats.completed_items


def activation(name: str, steps: int, number: int = 0) -> Activation:
    info = RunInfo(f"run{number}", name, "run", "run", 0, {})
    return Activation(registry.workflow(name), info, b'{"steps":%d}' % steps, NoSession(), None)


def bare_loop(events: int) -> float:
    """The loop, a task and a future, and nothing else: the floor."""

    class Host:
        def now_ms(self) -> int:
            return NOW

    host: Any = Host()
    loop = DeterministicLoop(host, "bench")  # type: ignore[abstract]
    host.loop = loop
    current: list[Script] = []

    async def body() -> None:
        for _ in range(events):
            current[:] = [Script(loop, "bench")]
            await current[0]

    import asyncio

    task = asyncio.Task(body(), loop=loop)  # type: ignore[arg-type]
    loop.run_ready()
    started = time.process_time()
    for i in range(events):
        current[0].finish(i)
        loop.run_ready()
    spent = time.process_time() - started
    assert task.done()
    return spent / events * 1e6


def resumed(name: str, events: int, value: bytes) -> tuple[float, list[PastEvent]]:
    """Deliver one result per event, oldest ask first."""
    live = activation(name, events)
    turn = live.start(NOW)
    history = [PastEvent(NOW, None, "", "", 0, (), ())]
    queue = list(turn.asks)
    delivered = 0
    started = time.process_time()
    while turn.outcome is None:
        ask = queue[delivered]
        delivered += 1
        event = Resolved(ask.path, value)
        turn = live.deliver(NOW + delivered, event)
        queue.extend(turn.asks)
        _, kind, label = ask_key(ask)
        history.append(PastEvent(NOW + delivered, event, kind, label, ask_digest(ask), (), ()))
    spent = time.process_time() - started
    return spent / delivered * 1e6, history


def rebuilt(name: str, events: int, history: list[PastEvent]) -> float:
    again = activation(name, events)
    started = time.process_time()
    assert again.rebuild(history, {}).outcome is not None
    return (time.process_time() - started) / len(history) * 1e6


def evicted(rounds: int) -> float:
    runs = [activation("sequential", 2, number) for number in range(rounds)]
    for run in runs:
        run.start(NOW)
    started = time.process_time()
    for run in runs:
        run.evict()
    return (time.process_time() - started) / rounds * 1e6


def started_runs(rounds: int) -> float:
    runs = [activation("sequential", 2, number) for number in range(rounds)]
    started = time.process_time()
    for run in runs:
        run.start(NOW)
    spent = time.process_time() - started
    for run in runs:
        run.evict()
    return spent / rounds * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=20_000)
    events = parser.parse_args().events

    def show(case: str, us: float) -> None:
        print(json.dumps({"bench": "replay_loop", "case": case, "us": round(us, 2), "events": events}), flush=True)

    show("bare loop: one task resumed by one future", min(bare_loop(events) for _ in range(3)))
    for name, value in (("sleeps", b"null"), ("sequential", b"1"), ("fan_out", b"1"), ("batch", b"1")):
        us, history = min((resumed(name, events, value) for _ in range(3)), key=lambda found: found[0])
        show(f"{name}: one event, delivered", us)
        show(f"{name}: one event, in a rebuild", rebuilt(name, events, history))
    show("start of a run to its first ask", min(started_runs(2_000) for _ in range(3)))
    show("eviction of a waiting run", min(evicted(2_000) for _ in range(3)))


if __name__ == "__main__":
    main()
