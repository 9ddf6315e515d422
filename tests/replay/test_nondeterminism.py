"""Code that does not fit a history is told so, with both sides named, and nothing else happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agnt5 import NonDeterminismError, WorkflowContext, function, registry, workflow
from agnt5.replay.history import History
from agnt5.testing import RunHandle, TestEnvironment


@function(name="nd_charge")
async def charge(order_id: str) -> str:
    return order_id


@function(name="nd_refund")
async def refund(order_id: str) -> str:
    return order_id


async def started(body: Any, **input: Any) -> tuple[TestEnvironment, RunHandle]:
    """A run of `body`, gone as far as it goes without time passing."""
    workflow(name="changing")(body)
    env = TestEnvironment()
    return env, await env.start("changing", **input)


def changed(body: Any) -> None:
    """A deploy: the workflow is another one now."""
    before = registry.snapshot()
    before.workflows.pop("changing")
    registry.restore(before)
    workflow(name="changing")(body)


async def refused(history: History, *sides: str) -> str:
    env = TestEnvironment()
    with pytest.raises(NonDeterminismError) as refusal:
        env.replay(history.to_json())
    told = str(refusal.value)
    for side in ("run run1", "'changing'", *sides):
        assert side in told
    return told


async def test_another_step_at_a_finished_path_names_both_sides_and_the_line() -> None:
    async def old(ctx: WorkflowContext) -> None:
        await ctx.step(charge, "o")
        await ctx.sleep(60)

    async def new(ctx: WorkflowContext) -> None:
        await ctx.step(refund, "o")
        await ctx.sleep(60)

    env, handle = await started(old)
    await env.until(lambda: "1" in handle._run.open, "the sleep")
    changed(new)
    await refused(handle.history(), "step 'nd_charge' at 0", "step 'nd_refund' at 0", "test_nondeterminism.py:")
    await env.__aexit__(None, None, None)


async def test_another_wait_at_the_end_names_both_sides() -> None:
    async def old(ctx: WorkflowContext) -> None:
        await ctx.sleep(60, name="cooling")

    async def new(ctx: WorkflowContext) -> None:
        await ctx.wait_for_signal("go")

    env, handle = await started(old)
    changed(new)
    await refused(handle.history(), "sleep 'cooling' at 0", "signal 'go' at 0")
    await env.__aexit__(None, None, None)


async def test_code_that_ends_too_early_or_goes_on_too_long_is_named() -> None:
    async def long(ctx: WorkflowContext) -> None:
        await ctx.step(charge, "o")
        await ctx.step(refund, "o")

    async def short(ctx: WorkflowContext) -> None:
        await ctx.step(charge, "o")

    env, handle = await started(long)
    await handle.result()
    history = handle.history()
    changed(short)
    await refused(history, "step 'nd_refund' at 1", "has ended")
    changed(long)
    await refused(
        History(history.info, history.input, history.events[:2], {}, history.outcome),
        "waits for no such thing",
        "step 'nd_refund' at 1",
    )
    await env.__aexit__(None, None, None)


async def test_reads_that_came_or_went_are_named() -> None:
    async def reads(ctx: WorkflowContext) -> None:
        await ctx.session.state.get("a")
        await ctx.sleep(60)

    async def reads_not(ctx: WorkflowContext) -> None:
        await ctx.sleep(60)

    env, handle = await started(reads)
    other, without = await started(reads_not) if changed(reads_not) else (env, handle)
    history = handle.history()
    await refused(history, "a session read at 0")
    changed(reads_not)
    env2 = TestEnvironment()
    without = await env2.start("changing")
    changed(reads)
    await refused(without.history(), "reads the session's state at 0")
    await other.__aexit__(None, None, None)
    await env2.__aexit__(None, None, None)


async def test_a_run_that_ends_otherwise_in_todays_code_is_refused_naming_both_ends() -> None:
    async def old(ctx: WorkflowContext) -> int:
        return 1

    async def new(ctx: WorkflowContext) -> int:
        return 2

    async def raises(ctx: WorkflowContext) -> int:
        raise ValueError("no")

    env, handle = await started(old)
    await handle.result()
    changed(new)
    await refused(handle.history(), "returned 1", "returned 2")
    changed(raises)
    await refused(handle.history(), "returned 1", "ValueError: no")
    await env.__aexit__(None, None, None)


async def test_a_change_behind_patched_fits_old_runs_and_new_ones() -> None:
    async def old(ctx: WorkflowContext) -> list[Any]:
        await ctx.step(charge, "o")
        await ctx.sleep(60)
        return ["old"]

    async def new(ctx: WorkflowContext) -> list[Any]:
        first = ctx.patched("refund first")
        await ctx.step(refund if first else charge, "o")
        await ctx.sleep(60)
        return [first, ctx.patched("refund first"), ctx.patched("later")]

    async def newer(ctx: WorkflowContext) -> list[Any]:
        assert ctx.patched("before all") in (True, False)
        return await new(ctx)

    env, before = await started(old)
    await env.until(lambda: "1" in before._run.open, "the sleep")
    changed(new)
    assert env.replay(before).complete
    run = before._run  # goes on with the new code
    run.workflow = registry.workflow("changing")
    run._rebuild()
    assert await before.result() == [False, False, True]
    assert env.replay(before).complete

    after = await env.start("changing")
    assert await after.result() == [True, True, True]
    changed(newer)
    assert env.replay(after).complete
    await env.__aexit__(None, None, None)


async def test_replay_stops_at_an_in_place_call_and_says_so() -> None:
    @function(name="nd_now")
    async def now_and_here() -> int:
        called.append(1)
        return 1

    called: list[int] = []

    async def body(ctx: WorkflowContext) -> int:
        await ctx.step(charge, "o")
        await ctx.sleep(1)
        return int(await now_and_here(ctx))

    env, handle = await started(body)
    assert await handle.result() == 1
    verified = env.replay(handle)
    assert (verified.events, verified.verified, verified.stopped_at, verified.complete) == (3, 2, "nd_now", False)
    assert called == [1]
    await env.__aexit__(None, None, None)


async def test_a_cancel_in_the_middle_of_an_in_place_call_is_replayed_there() -> None:
    @function(name="nd_quick")
    async def quick(x: int) -> int:
        return x

    @function(name="nd_slow")
    async def slow() -> None:
        await asyncio.sleep(3600)

    async def body(ctx: WorkflowContext) -> list[Any]:
        seen: list[Any] = [await quick(ctx, 1)]
        try:
            seen.append(await slow(ctx))
        except asyncio.CancelledError:
            seen.append(await ctx.step(charge, "cleaned"))
        return seen

    env, handle = await started(body)
    for _ in range(5):
        await env.settle()
    await handle.cancel()
    assert await handle.result() == [1, "cleaned"]
    events = handle.history().events
    assert [past.digest for past in events[:2]] == [0, 2]
    run = handle._run
    fresh = run._activation()
    turn = fresh.rebuild(events, {})
    assert [call.name for call in turn.calls] == ["nd_quick"]
    turn = fresh.finish_call(turn.calls[0].token, 1)
    assert turn.outcome == run.outcome  # without the slow call being asked for
    await env.__aexit__(None, None, None)


def test_a_history_survives_json_and_nonsense_is_refused() -> None:
    for nonsense in (b"", b"{}", b"[]", b'{"format": 99}', b'{"format": 1}'):
        with pytest.raises(ValueError, match=r"history|JSON|EOF"):
            History.from_json(nonsense)
