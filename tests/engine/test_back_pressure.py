"""Memory stays bounded, whatever comes in and however long it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agnt5 import WorkflowContext, function, workflow
from agnt5.types import event
from tests.engine.conftest import Engine

EVENTS = 1500
AT_ONCE = 10


@function
async def slow(n: int) -> int:
    await asyncio.sleep(0.02)
    return n


@workflow(triggers=[event("pressure.orders")])
async def order(ctx: WorkflowContext, n: int) -> int:
    return await ctx.step(slow, n)


@workflow
async def neighbour(ctx: WorkflowContext) -> str:
    return str(await ctx.wait_for_signal("go"))


@workflow(triggers=[event("pressure.requests")])
async def asks(ctx: WorkflowContext, n: int) -> str:
    return f"{n}: {await ctx.wait_for_user('Approve?', input_type='approval')}"


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await Engine(tmp_path / "data", step_concurrency=AT_ONCE).start()
    yield engine
    await engine.stop()


async def publish(engine: Engine, topic: str, count: int) -> None:
    for first in range(0, count, 500):
        numbers = range(first, min(first + 500, count))
        sent = (engine.processor.publish(topic, b'{"n": %d}' % n, b"%d" % n, ()) for n in numbers)
        await asyncio.gather(*sent)


async def test_events_that_come_faster_than_steps_run_wait_in_their_topic_and_the_journal_goes_on(
    narrow: Engine,
) -> None:
    processor = narrow.processor
    owners = processor._owners.values()
    waiting = await narrow.submit("neighbour")
    await publish(narrow, "pressure.orders", EVENTS)
    most, neighbour_ended_at = 0, None
    await processor.signal(waiting, "go", "at last", None)

    def ended() -> int:
        return sum(1 for owner in owners for _ in owner.table.scan(b"F"))

    while (done := ended()) <= EVENTS:
        unfinished = sum(1 for owner in owners for run in owner.state.runs.values() if not run.ended)
        most = max(most, unfinished)
        if neighbour_ended_at is None and (await processor.run(waiting)).ended:
            neighbour_ended_at = done
        await asyncio.sleep(0.01)
    # Two chunks of a hundred events, and what runs.
    assert AT_ONCE <= most <= 200 + 4 * AT_ONCE
    assert neighbour_ended_at is not None
    assert neighbour_ended_at < EVENTS / 2
    assert (await processor.run(waiting)).output == "at last"


async def test_ten_thousand_runs_that_wait_for_people_wait_on_disk(engine: Engine) -> None:
    processor = engine.processor
    await publish(engine, "pressure.requests", 10_000)
    owners = processor._owners.values()

    def asked() -> int:
        return sum(1 for owner in owners for _ in owner.table.scan(b"A"))

    async def all_wait() -> bool:
        return asked() == 10_000

    await engine.until(all_wait, 120)

    async def still() -> bool:
        # One more checkpoint, and what is beyond the resident ones has left memory.
        return all(len(owner.state.runs) <= owner._around.resident for owner in owners)

    await engine.until(still, 30)
    for run in (await processor.runs(status="awaiting_user_input", limit=20)).items:
        await processor.answer(run.run_id, "approve", None, None)
        assert run.input is not None
        finished = await asyncio.wait_for(processor.finished(run.run_id), 30)
        assert finished.output == f"{run.input['n']}: approve"
