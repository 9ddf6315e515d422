"""What comes together in one row may be larger than one message of the changelog: nothing stops for that."""

from __future__ import annotations

import asyncio
import shutil

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5_engine.records.journal import RunParked
from agnt5_engine.records.routing import session_key
from tests.engine.conftest import Engine

LARGE = "x" * 900_000
HOLD = asyncio.Event()


@function
async def brings(ctx: FunctionContext, n: int) -> str:
    await HOLD.wait()
    return f"{n}{LARGE}"


@function
async def holds(ctx: FunctionContext) -> None:
    await HOLD.wait()


@workflow
async def reads_much(ctx: WorkflowContext) -> int:
    await ctx.session.state.set("large", LARGE)
    seen = [await ctx.session.state.get("large") for _ in range(8)]
    await ctx.wait_for_signal("go")
    return sum(map(len, seen))


@workflow
async def held_up(ctx: WorkflowContext, given: str = "") -> int:
    if not given:
        await holds(ctx)  # in place: whatever else is for the session waits
    return len(given)


@workflow
async def gathers(ctx: WorkflowContext) -> int:
    return sum(map(len, await ctx.parallel(*(ctx.step(brings, n) for n in range(8)))))


async def _from_the_changelog(engine: Engine) -> None:
    """A new owner on another disk."""
    owners = list(engine.processor._owners.values())
    await asyncio.sleep(0.5)
    for owner in owners:
        assert not owner.closed, "the partition has failed"
        assert owner.checkpoints._written == owner.state.applied
    await engine.stop(crash=True)
    for tables in engine.settings.data_dir.glob("slots/*/tables"):
        shutil.rmtree(tables)
    await engine.start()


async def test_a_run_that_reads_much_in_one_stretch_goes_on_elsewhere(engine: Engine) -> None:
    run_id = await engine.submit("reads_much", session_id="s")
    await _from_the_changelog(engine)
    await engine.processor.signal(run_id, "go", None, None)
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 20)).output == 8 * len(LARGE)
    await _from_the_changelog(engine)
    assert (await engine.processor.run(run_id)).output == 8 * len(LARGE)


async def test_what_waits_for_a_session_s_in_place_call_may_be_much(engine: Engine) -> None:
    HOLD.clear()
    given = b'{"given":"%b"}' % LARGE.encode()
    runs = {f"{session_key('s')}.run{n}": given if n else b"{}" for n in range(9)}
    sent = [
        asyncio.create_task(engine.submit("held_up", input, session_id="s", run_id=run_id))
        for run_id, input in runs.items()
    ]
    await _from_the_changelog(engine)
    await asyncio.gather(*sent, return_exceptions=True)
    HOLD.set()
    for run_id, input in runs.items():
        run = await asyncio.wait_for(engine.processor.finished(run_id), 20)
        assert run.output == (len(LARGE) if input == given else 0)


async def test_what_comes_for_a_parked_run_may_be_much(engine: Engine) -> None:
    HOLD.clear()
    run_id = await engine.submit("gathers")
    owner = engine.processor._owners[engine.processor.partition_of(run_id)]
    owner.append(run_id, RunParked(run_id, "", "poison", "as if it had killed its processor", owner.claim))
    await owner.flushed()
    HOLD.set()
    for _ in range(2):
        await _from_the_changelog(engine)
    await engine.processor.retry(run_id)
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 20)).output == 8 * len(f"0{LARGE}")
