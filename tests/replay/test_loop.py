"""The deterministic loop runs inside any other loop and leaves no trace there."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
import uvloop

from agnt5 import WorkflowContext, function, workflow
from agnt5.replay.activation import Activation
from agnt5.replay.loop import due_ms
from agnt5.replay.protocol import Completed, Errored, Resolved, RunInfo, Turn

NOW = 1_700_000_000_123


class NoSession:
    def session_state(self) -> dict[str, bytes]:
        return {}


def activation(body: Any, input: bytes = b"{}") -> Activation:
    made = workflow(body)
    return Activation(made, RunInfo("run", made.name, "run", "run", 0, {}), input, NoSession(), None)


@function(name="loop_work")
async def work(x: int) -> int:
    return x


async def looks_around(ctx: WorkflowContext) -> list[str]:
    loop = asyncio.get_running_loop()
    seen = [type(loop).__name__]
    task = asyncio.current_task()
    assert task is not None
    seen.append(task.get_name())
    assert task in asyncio.all_tasks()
    assert loop.time() * 1000 == pytest.approx(NOW)
    await ctx.step(work, 1)
    assert asyncio.current_task() is task
    return seen


@pytest.mark.parametrize("runner", ["asyncio", "uvloop", "none"])
def test_it_is_the_running_loop_inside_and_the_outer_one_is_again_outside(runner: str) -> None:
    def drive() -> None:
        live = activation(looks_around)
        live.start(NOW)
        turn = live.deliver(NOW + 1, Resolved("0", b"1"))
        assert turn.outcome == Completed(b'["DeterministicLoop","run"]')

    async def outer() -> None:
        loop, task, hooks = asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()
        drive()
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        assert sys.get_asyncgen_hooks() == hooks
        assert asyncio.all_tasks() == {task}
        await asyncio.sleep(0)

    if runner == "asyncio":
        asyncio.run(outer())
    elif runner == "uvloop":
        uvloop.run(outer())
    else:
        drive()


def test_a_due_time_is_never_early_and_at_most_a_millisecond_late() -> None:
    for delay in (0.001, 0.0015, 0.1, 1, 1.2345, 86400.0007):
        due = due_ms(NOW / 1000 + delay)
        assert -0.01 <= due - (NOW + delay * 1000) <= 1.01
    for wrong in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="never due"):
            due_ms(wrong)


def test_a_timer_that_is_given_up_in_its_turn_was_never_asked() -> None:
    async def quick(ctx: WorkflowContext) -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await ctx.step(work, 1)

    live = activation(quick)
    turn = live.start(NOW)
    assert [ask.path for ask in turn.asks] == ["1", "2"]
    turn = live.deliver(NOW, Resolved("2", b"1"))
    assert (turn.withdrawn, turn.outcome) == (["1"], Completed(b"null"))


def test_paths_are_those_of_the_documentation() -> None:
    async def numbered(ctx: WorkflowContext) -> None:
        await ctx.step(work, 1)

        async def branch() -> None:
            await ctx.step(work, 2)
            await ctx.parallel(ctx.step(work, 3), leaf())

        async def leaf() -> None:
            await ctx.sleep(1)

        await ctx.parallel(ctx.step(work, 4), branch(), work(5))
        task = asyncio.create_task(leaf())
        kept = asyncio.create_task(ctx.step(work, 6))  # type: ignore[arg-type]
        await asyncio.gather(task, kept, leaf(), work(7))
        await asyncio.wait_for(ctx.step(work, 8), 5)
        await ctx.batch(work, [1, 2], timeout_per_item=5)
        await ctx.session.state.update("n", lambda n: 1)
        await ctx.step(work, 9)

    live = activation(numbered)
    seen: list[str] = []
    turn: Turn = live.start(NOW)
    waiting: list[Any] = []
    while turn.outcome is None:
        waiting = [ask for ask in waiting if ask.path not in turn.withdrawn] + turn.asks
        seen += [ask.path for ask in turn.asks]
        ask = next((ask for ask in waiting if type(ask).__name__ != "SleepAsk"), waiting[0])
        waiting.remove(ask)
        turn = live.deliver(NOW, Resolved(ask.path, b"1"))
    assert isinstance(turn.outcome, Completed)
    first = ["0", "1", "2", "3/0", "3/1", "3/2/0", "4/0", "5", "6", "7/0", "8", "9"]
    assert sorted(seen) == sorted([*first, "10/0", "10/0/0", "10/1", "10/1/0", "11/1", "12"])


def test_ten_thousand_items_in_one_batch_cost_a_turn_each_and_no_task() -> None:
    async def many(ctx: WorkflowContext) -> int:
        result = await ctx.batch(work, list(range(10_000)), max_concurrency=100)
        assert result.outputs == list(range(10_000))
        return result.stats.completed_items

    live = activation(many)
    turn = live.start(NOW)
    assert len(turn.asks) == 100
    waiting, at = list(turn.asks), 0
    while turn.outcome is None:
        ask = waiting[at]
        at += 1
        turn = live.deliver(NOW + at, Resolved(ask.path, ask.path.rpartition("/")[2].encode()))
        assert len(live._tasks) <= 1
        waiting += turn.asks
    assert turn.outcome == Completed(b"10000")
    assert at == 10_000


def test_task_groups_cancel_in_the_same_order_in_every_replay() -> None:
    async def grouped(ctx: WorkflowContext) -> list[int]:
        order: list[int] = []

        async def waits(number: int) -> None:
            try:
                await ctx.sleep(100)
            finally:
                order.append(number)

        async def fails() -> None:
            await ctx.step(work, 1)
            raise ValueError

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(waits(number))
                group.create_task(fails())
        except* ValueError:
            pass
        done, _ = await asyncio.wait([ctx.step(work, n) for n in range(8)])
        return order + [task.result() for task in done]

    ends = set()
    for _ in range(20):
        live = activation(grouped)
        live.start(NOW)
        turn = live.deliver(NOW, Resolved("8/0", b"1"))
        for ask in turn.asks:
            turn = live.deliver(NOW, Resolved(ask.path, ask.path.encode()))
        assert isinstance(turn.outcome, Completed)
        ends.add(turn.outcome)
    assert len(ends) == 1


async def leg(ctx: WorkflowContext, x: int) -> int:
    return int(await ctx.step(work, x))


@pytest.mark.parametrize("kind", [list, iter])
def test_as_completed_numbers_its_coroutines_in_the_order_given_and_not_by_their_addresses(kind: Any) -> None:
    async def legs(ctx: WorkflowContext) -> list[int]:
        return [await first for first in asyncio.as_completed(kind([leg(ctx, x) for x in range(8)]))]

    for _ in range(5):  # each time at other addresses
        live = activation(legs)
        asked = live.start(NOW).asks
        assert [(ask.path, ask.input) for ask in asked] == [  # type: ignore[union-attr]
            (f"{x}/0", b'{"args":[%d],"kwargs":{}}' % x) for x in range(8)
        ]
        live.evict()


def test_as_completed_of_a_set_of_coroutines_is_refused_since_no_replay_could_repeat_its_order() -> None:
    async def legs(ctx: WorkflowContext) -> None:
        made = {leg(ctx, x) for x in range(2)}
        try:
            for first in asyncio.as_completed(made):
                await first
        finally:
            for coroutine in made:
                coroutine.close()

    outcome = activation(legs).start(NOW).outcome
    assert isinstance(outcome, Errored)
    assert (outcome.error.type, "give asyncio.as_completed a list" in outcome.error.message) == ("TypeError", True)


def test_what_gather_returns_has_the_same_place_in_a_set_in_every_replay() -> None:
    async def gathers(ctx: WorkflowContext) -> list[int]:
        made = [asyncio.gather(asyncio.sleep(0, x)) for x in range(8)]
        done, _ = await asyncio.wait(made)
        return [future.result()[0] for future in done]

    outcomes = {activation(gathers).start(NOW).outcome for _ in range(5)}
    assert len(outcomes) == 1


async def test_outside_of_workflows_asyncio_is_what_it_was() -> None:
    made = {asyncio.sleep(0, x) for x in range(8)}
    assert {await first for first in asyncio.as_completed(made)} == set(range(8))
    future = asyncio.gather(asyncio.sleep(0))
    assert hash(future) == object.__hash__(future)
    done, rest = await asyncio.wait([future])
    assert (type(done), type(rest)) == (set, set)
