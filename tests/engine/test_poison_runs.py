"""A run whose values, errors or history are out of all proportion ends with a reason; its neighbours go on."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from typing import Any

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from tests.engine.conftest import Engine


@function
async def echo(value: int) -> int:
    return value


@workflow
async def neighbour(ctx: WorkflowContext) -> int:
    await ctx.wait_for_signal("go")
    return await ctx.step(echo, 7)


class Unspeakable(Exception):
    """Cannot be pickled, printed or compared."""

    def __init__(self, one: object, two: object) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


def deeper(level: int) -> int:
    return deeper(level + 1) + 1


async def deeper_still(level: int) -> int:
    return await deeper_still(level + 1) + 1


@function(retries=1)
async def returns_50_mb(ctx: FunctionContext) -> str:
    return "x" * 50_000_000


@function(retries=1)
async def recurses(ctx: FunctionContext) -> int:
    return deeper(0)


@function(retries=1)
def recurses_in_a_thread(ctx: FunctionContext) -> int:
    return deeper(0)


@function(retries=1)
async def awaits_itself(ctx: FunctionContext) -> int:
    return await deeper_still(0)


@function(retries=1)
async def nests(ctx: FunctionContext) -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


@function(retries=1)
async def raises_the_unspeakable(ctx: FunctionContext) -> None:
    raise Unspeakable(1, 2)


@workflow
async def step_of(ctx: WorkflowContext, name: str) -> Any:
    return await ctx.step(globals()[name])


class Drastic(BaseException):
    """As libraries have it that want to get past `except Exception`."""


@function
async def exits_in_place(ctx: FunctionContext) -> None:
    sys.exit("usage: no")


@function
async def raises_the_drastic_in_place(ctx: FunctionContext) -> None:
    raise Drastic("usage: no")


@workflow
async def in_place(ctx: WorkflowContext, name: str) -> None:
    await globals()[name](ctx)


@workflow
async def large_output(ctx: WorkflowContext) -> str:
    return "x" * 50_000_000


@workflow
async def large_state(ctx: WorkflowContext) -> None:
    await ctx.state.set("all", "x" * 50_000_000)


@workflow
async def recursion(ctx: WorkflowContext) -> int:
    return deeper(await ctx.step(echo, 1))


@workflow
async def awaited_recursion(ctx: WorkflowContext) -> int:
    return await deeper_still(await ctx.step(echo, 1))


@workflow
async def unspeakable(ctx: WorkflowContext) -> None:
    await ctx.step(echo, 1)
    raise Unspeakable(1, 2)


def test_the_unspeakable_is_as_bad_as_it_should_be() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Unspeakable(1, 2))
    with pytest.raises(RuntimeError):
        str(Unspeakable(1, 2))


STEPS = [
    ("returns_50_mb", "FatalError", "50,000,002 bytes"),
    ("recurses", "RecursionError", "recursion"),
    ("recurses_in_a_thread", "RecursionError", "recursion"),
    ("awaits_itself", "RecursionError", "recursion"),
    ("nests", "EncodeError", "deep"),
    ("raises_the_unspeakable", "Unspeakable", "cannot be printed"),
]
CALLS = [
    ("exits_in_place", "SystemExit", "usage"),
    ("raises_the_drastic_in_place", "Drastic", "usage"),
]
WORKFLOWS = [
    ("large_output", "", "bytes"),
    ("large_state", "", "bytes"),
    ("recursion", "RecursionError", "recursion"),
    ("awaited_recursion", "RecursionError", "recursion"),
    ("unspeakable", "Unspeakable", "cannot be printed"),
]


@pytest.mark.parametrize(
    ("workflow_name", "step", "type_", "told"),
    [("step_of", *case) for case in STEPS]
    + [("in_place", *case) for case in CALLS]
    + [(name, None, *case) for name, *case in WORKFLOWS],
)
async def test_what_cannot_be_kept_fails_its_run_with_a_reason_and_its_neighbour_goes_on(
    engine: Engine, workflow_name: str, step: str | None, type_: str, told: str
) -> None:
    innocent = await engine.submit("neighbour")
    run_id = await engine.submit(workflow_name, b'{"name": "%s"}' % step.encode() if step else b"{}")
    run = await asyncio.wait_for(engine.processor.finished(run_id), 30)
    print(run.error)
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.type.endswith(type_)
    assert told in run.error.message
    await engine.restart(crash=True)
    assert (await engine.processor.run(run_id)).error == run.error
    await engine.processor.signal(innocent, "go", None, None)
    assert (await asyncio.wait_for(engine.processor.finished(innocent), 30)).output == 7


COUNTED = [0]


@function
async def counts(value: int) -> int:
    COUNTED[0] += 1
    return value


@workflow
async def does_not_end(ctx: WorkflowContext, entries: int) -> int:
    done = 0
    for _ in range(0, entries, 500):
        done += len(await ctx.parallel(*(ctx.step(counts, i) for i in range(500))))
    await ctx.wait_for_user("Enough?", input_type="approval")
    return done + await ctx.step(counts, 1)


@pytest.mark.slow
async def test_a_history_of_100_000_entries_is_taken_up_again_after_a_crash_and_its_neighbours_go_on(
    engine: Engine,
) -> None:
    innocent = await engine.submit("neighbour")
    run_id = await engine.submit("does_not_end", b'{"entries": 100000}')
    await asyncio.sleep(0.5)  # it is in the middle of that
    await engine.processor.signal(innocent, "go", None, None)
    assert (await asyncio.wait_for(engine.processor.finished(innocent), 60)).output == 7

    async def asks() -> bool:
        return (await engine.processor.run(run_id)).status == "awaiting_user_input"

    await engine.until(asks, 300)
    assert COUNTED == [100_000]
    await engine.restart(crash=True)
    await asyncio.wait_for(engine.processor.answer(run_id, "approve", None, None), 120)
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 120)).output == 100_001
    assert COUNTED == [100_001], "what was completed is not done again"
