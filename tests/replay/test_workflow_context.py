"""What workflow code can do, and what it is told when it does it wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from agnt5 import (
    BatchResult,
    ChildError,
    FatalError,
    FunctionContext,
    InputError,
    StepError,
    WorkflowContext,
    function,
    workflow,
)
from agnt5.errors import RunError
from agnt5.testing import TestEnvironment


async def test_every_form_of_step_gives_its_result() -> None:
    @function
    async def double(ctx: FunctionContext, x: int) -> int:
        return 2 * x

    @function
    def plain(x: int, by: int = 1) -> int:
        return x + by

    def undecorated(x: int) -> int:
        return x - 1

    @workflow
    async def forms(ctx: WorkflowContext) -> list[Any]:
        async def coroutine() -> str:
            return "coroutine"

        return [
            await ctx.step(double, 1),
            await ctx.step(plain, 1, by=5),
            await ctx.step("plain", 7),
            await ctx.step("named", lambda: "closure"),
            await ctx.step("named", coroutine()),
            await ctx.step("named", double, 4),
            await ctx.step(undecorated, 3),
            await ctx.run(double, 5),
            await plain(1),
            await ctx.step(double(6)),
            await double(ctx, 7),
            await ctx.step(double.options(retries=1), 8),
        ]

    async with TestEnvironment() as env:
        assert await env.run(forms) == [2, 6, 8, "closure", "coroutine", 8, 2, 10, 2, 12, 14, 16]


async def test_a_none_argument_reaches_the_function() -> None:
    @function
    async def kind(x: Any, y: Any = 1) -> str:
        return f"{x} {y}"

    @workflow
    async def passes_none(ctx: WorkflowContext) -> str:
        return str(await ctx.step(kind, None))

    async with TestEnvironment() as env:
        assert await env.run(passes_none) == "None 1"


async def test_parallel_and_gather_keep_order_and_names() -> None:
    @function
    async def echo(x: Any) -> Any:
        await asyncio.sleep(0.01 * (3 - x))
        return x

    async def branch(ctx: WorkflowContext) -> int:
        return int(await ctx.step(echo, 1)) + int(await ctx.step(echo, 2))

    @workflow
    async def both(ctx: WorkflowContext) -> list[Any]:
        inner = await ctx.parallel(ctx.step(echo, 1), echo(2), branch(ctx), ctx.parallel(echo(0), echo(1)))
        named = await ctx.gather(a=echo(1), b=branch(ctx))
        none = await ctx.parallel()
        return [inner, named, none, await ctx.gather()]

    async with TestEnvironment() as env:
        assert await env.run(both) == [[1, 2, 3, [0, 1]], {"a": 1, "b": 3}, [], {}]


async def test_the_first_failure_of_parallel_cancels_the_rest_and_waits_for_their_end() -> None:
    seen: list[str] = []

    @function(retries=1)
    async def fails() -> None:
        raise ValueError("no")

    @function
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("step cancelled")
            raise

    async def branch(ctx: WorkflowContext) -> None:
        try:
            await ctx.step(slow)
        finally:
            await ctx.sleep(10)
            seen.append("branch cleaned up")

    @workflow
    async def races(ctx: WorkflowContext) -> str:
        with pytest.raises(ValueError, match="no") as failed:
            await ctx.parallel(ctx.step(fails), branch(ctx), ctx.sleep(1000))
        return f"{seen} {type(failed.value).__name__}"

    @workflow
    async def collects(ctx: WorkflowContext) -> list[str]:
        found = await ctx.parallel(ctx.step(fails), ctx.step("ok", lambda: 1), return_exceptions=True)
        return [type(thing).__name__ for thing in found]

    async with TestEnvironment() as env:
        told = await env.run(races)
        assert "branch cleaned up" in told
        assert "StepError" in told
        assert "step cancelled" in seen
        assert await env.run(collects) == ["StepError", "int"]


async def test_batch_runs_every_item_and_map_raises() -> None:
    @function(retries=1)
    async def work(doc_id: int) -> int:
        if doc_id == 3:
            raise ValueError("three")
        return doc_id * 10

    @workflow
    async def batches(ctx: WorkflowContext) -> dict[str, Any]:
        result: BatchResult[int] = await ctx.batch(work, [{"doc_id": 1}, 2, 3, 4], max_concurrency=2)
        failed = result.failed_items()[0]
        stopped = await ctx.batch(work, [3, 1, 2], max_concurrency=1, continue_on_failure=False)
        with pytest.raises(ValueError, match="three"):
            await ctx.map(work, [1, 2, 3])
        return {
            "status": result.status,
            "outputs": result.outputs,
            "good": result.successful_outputs(),
            "failed": [failed.index, failed.status, str(failed.error)],
            "partial": result.is_partial_failure,
            "stats": [result.stats.total_items, result.stats.completed_items, result.stats.failed_items],
            "stopped": [item.status for item in stopped.results],
            "pending": stopped.stats.pending_items,
            "map": await ctx.map(work, [{"doc_id": 1}, 2]),
            "empty": (await ctx.batch(work, [])).is_success,
        }

    async with TestEnvironment() as env:
        assert await env.run(batches) == {
            "status": "partial",
            "outputs": [10, 20, None, 40],
            "good": [10, 20, 40],
            "failed": [2, "failed", "ValueError: three"],
            "partial": True,
            "stats": [4, 3, 1],
            "stopped": ["failed", "pending", "pending"],
            "pending": 2,
            "map": [10, 20],
            "empty": True,
        }


async def test_a_batch_item_that_takes_too_long_fails_and_the_others_do_not() -> None:
    @function
    async def work(x: int) -> int:
        if x == 1:
            await asyncio.sleep(60)
        return x

    @workflow
    async def limited(ctx: WorkflowContext) -> list[Any]:
        result = await ctx.batch(work, [0, 1, 2], timeout_per_item=0.05)
        return [[item.status, item.error.type if item.error else None] for item in result.results]

    async with TestEnvironment() as env:
        assert await env.run(limited) == [["completed", None], ["failed", "TimeoutError"], ["completed", None]]


async def test_sleep_skips_time_and_refuses_what_is_no_duration() -> None:
    @workflow
    async def sleeper(ctx: WorkflowContext) -> float:
        before = ctx.now()
        for _ in range(3):
            await ctx.sleep(3600, name="hour")
        await ctx.sleep(timedelta(hours=1))
        await asyncio.sleep(3600)
        for wrong in (-1, float("nan"), float("inf"), True, "1", None, timedelta(seconds=-1)):
            with pytest.raises(ValueError, match="seconds"):
                await ctx.sleep(wrong)  # type: ignore[arg-type]
        return (ctx.now() - before).total_seconds()

    async with TestEnvironment() as env:
        assert 5 * 3600 <= await env.run(sleeper) < 5 * 3600 + 10


async def test_asyncio_helpers_are_durable() -> None:
    @function
    async def echo(x: int) -> int:
        return x

    async def branch(ctx: WorkflowContext, x: int) -> int:
        await asyncio.sleep(10)
        return int(await ctx.step(echo, x))

    @workflow
    async def helpers(ctx: WorkflowContext) -> list[Any]:
        found: list[Any] = [await asyncio.gather(branch(ctx, 1), ctx.step(echo, 2), echo(3))]
        async with asyncio.TaskGroup() as group:
            one = group.create_task(branch(ctx, 4))
            two = group.create_task(ctx.step(echo, 5))  # type: ignore[arg-type]
        found.append([one.result(), two.result()])
        try:
            async with asyncio.timeout(1):
                await ctx.sleep(100)
        except TimeoutError:
            found.append("timeout")
        try:
            await asyncio.wait_for(branch(ctx, 6), 1)
        except TimeoutError:
            found.append("wait_for")
        found.append(await asyncio.wait_for(ctx.step(echo, 7), 100))
        done, rest = await asyncio.wait(
            [asyncio.create_task(branch(ctx, 8)), asyncio.create_task(ctx.sleep(1))],  # type: ignore[arg-type]
            return_when=asyncio.FIRST_COMPLETED,
        )
        found.append([len(done), len(rest)])
        for task in rest:
            task.cancel()
        queue: asyncio.Queue[int] = asyncio.Queue()
        producer = asyncio.create_task(_fill(ctx, queue))
        found.append([await queue.get(), await queue.get()])
        await producer
        found.append(await asyncio.shield(ctx.step(echo, 9)))
        found.append([await next_ for next_ in asyncio.as_completed([ctx.step(echo, 1), branch(ctx, 2)])])
        return found

    async def _fill(ctx: WorkflowContext, queue: asyncio.Queue[int]) -> None:
        for i in range(2):
            await queue.put(await ctx.step(echo, i))

    async with TestEnvironment() as env:
        handle = await env.start(helpers)
        assert await handle.result() == [
            [1, 2, 3],
            [4, 5],
            "timeout",
            "wait_for",
            7,
            [1, 1],
            [0, 1],
            9,
            [1, 2],
        ]
        assert env.replay(handle.history()).complete


@pytest.mark.parametrize("what", ["thread", "connection", "executor", "process", "signal"])
async def test_what_leaves_the_run_is_refused_with_the_remedy(what: str) -> None:
    @workflow
    async def leaves(ctx: WorkflowContext) -> None:
        loop = asyncio.get_running_loop()
        if what == "thread":
            await asyncio.to_thread(print)
        elif what == "connection":
            await asyncio.open_connection("127.0.0.1", 1)
        elif what == "executor":
            await loop.run_in_executor(None, print)
        elif what == "process":
            await asyncio.create_subprocess_exec("true")
        else:
            loop.add_signal_handler(1, print)

    async with TestEnvironment() as env:
        with pytest.raises(RuntimeError, match="Put it in a @function"):
            await env.run(leaves)


async def test_the_three_scopes_of_state_have_the_same_methods() -> None:
    @workflow
    async def states(ctx: WorkflowContext) -> list[Any]:
        found: list[Any] = []
        for state in (ctx.state, ctx.session.state, ctx.user.state):
            value: dict[str, Any] = {"list": [1]}
            await state.set("a", value)
            value["list"].append(2)
            read = await state.get("a")
            read["list"].append(3)
            await state.set("b", None)
            found.append(
                [
                    await state.get("a"),
                    await state.get("b", "default"),
                    await state.get("c", "default"),
                    await state.keys(),
                    await state.update("n", lambda n: n + 1, 10),
                    await state.update("n", lambda n: n + 1, 10),
                ]
            )
            await state.delete("a")
            await state.delete("never there")
            found.append(await state.to_dict())
            await state.clear()
            found.append(await state.to_dict())
        return found

    one = [[{"list": [1]}, None, "default", ["a", "b"], 11, 12], {"b": None, "n": 12}, {}]
    async with TestEnvironment() as env:
        handle = await env.start(states)
        assert await handle.result() == one * 3
        assert env.replay(handle.history()).complete


async def test_session_state_outlives_the_run_and_run_state_does_not() -> None:
    @workflow
    async def visits(ctx: WorkflowContext) -> list[int]:
        await ctx.state.update("visits", lambda n: n + 1, 0)
        count = await ctx.session.state.get("visits", 0)
        await ctx.session.state.set("visits", count + 1)
        return [await ctx.state.get("visits"), count + 1]

    async with TestEnvironment() as env:
        assert await env.run(visits, session_id="s") == [1, 1]
        assert await env.run(visits.options(session_id="s")) == [1, 2]
        assert await env.run(visits, session_id="other") == [1, 1]
        assert env.session_state("s") == {"visits": 2}


async def test_get_then_set_is_atomic_between_branches_and_runs_of_a_session() -> None:
    @function
    async def think(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @workflow
    async def counts(ctx: WorkflowContext) -> None:
        async def count() -> None:
            for _ in range(3):
                value = await ctx.session.state.get("n", 0)
                await asyncio.sleep(0)
                value = await think(ctx, value)
                await ctx.session.state.set("n", value + 1)

        await ctx.parallel(count(), count(), ctx.step(think, 1))
        await asyncio.gather(*(ctx.session.state.update("n", lambda n: n + 1, 0) for _ in range(3)))

    async with TestEnvironment() as env:
        handles = [await env.start(counts, session_id="s") for _ in range(3)]
        for handle in handles:
            await handle.result()
        assert env.session_state("s") == {"n": 27}


async def test_user_state_updates_of_many_runs_lose_nothing() -> None:
    @workflow
    async def counts(ctx: WorkflowContext) -> None:
        await asyncio.gather(*(ctx.user.state.update("n", lambda n: n + 1, 0) for _ in range(4)))

    async with TestEnvironment() as env:
        handles = [await env.start(counts, user_id="u") for _ in range(3)]
        for handle in handles:
            await handle.result()
        assert env.user_state("u") == {"n": 12}


async def test_people_answer_and_wrong_answers_are_refused() -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> list[Any]:
        return [
            await ctx.wait_for_user("Approve?", input_type="approval"),
            await ctx.wait_for_user("Name?"),
            await ctx.wait_for_user(
                "Which?", input_type="multiselect", options=[{"id": "a", "label": "A"}, {"id": "b", "label": "B"}]
            ),
            await ctx.wait_for_user("More?", skippable=True),
        ]

    async with TestEnvironment() as env:
        handle = await env.start(asks)
        assert handle.status == "awaiting_user_input"
        assert [option["id"] for option in (await handle.question()).options] == ["approve", "reject"]
        with pytest.raises(ValueError, match="approve"):
            await handle.answer("maybe")
        await handle.answer("approve")
        await handle.answer("Ada")
        with pytest.raises(ValueError, match="'c' is not an option"):
            await handle.answer(["a", "c"])
        await handle.answer(["a", "b"])
        with pytest.raises(ValueError, match="text"):
            await handle.answer(1)
        await handle.answer(None)
        assert await handle.result() == ["approve", "Ada", ["a", "b"], None]

    async with TestEnvironment(answers=["reject", "Bob", [], "more"]) as env:
        assert await env.run(asks) == ["reject", "Bob", [], "more"]


async def test_a_question_and_a_signal_time_out() -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> list[str]:
        found = []
        for waiting in (ctx.wait_for_user("?", timeout=60), ctx.wait_for_signal("go", timeout=timedelta(hours=1))):
            try:
                await waiting
            except TimeoutError as error:
                found.append(str(error))
        return found

    async with TestEnvironment() as env:
        first, second = await env.run(waits)
        assert "'?'" in first
        assert "'go'" in second


async def test_signals_are_kept_until_they_are_waited_for() -> None:
    @workflow
    async def takes(ctx: WorkflowContext) -> list[Any]:
        await ctx.sleep(3600)
        return [await ctx.wait_for_signal("go", type=int), await ctx.wait_for_signal("go")]

    async with TestEnvironment() as env:
        handle = await env.start(takes)
        await handle.signal("go", 1)
        await handle.signal("other", 2)
        await handle.signal("go", {"a": 3})
        assert await handle.result() == [1, {"a": 3}]


async def test_children_run_fail_and_are_cancelled_with_their_parent() -> None:
    @function(retries=1)
    async def refuse() -> None:
        raise ValueError("refused")

    @workflow
    async def child(ctx: WorkflowContext, n: int) -> list[Any]:
        if n < 0:
            await ctx.step(refuse)
        if n > 100:
            await ctx.sleep(10_000)
        return [n, ctx.session_id, ctx.user_id]

    @workflow
    async def parent(ctx: WorkflowContext) -> list[Any]:
        handle = await ctx.start(child, 1)
        assert handle.run_id.startswith(f"{ctx.run_id}.")
        with pytest.raises(ChildError) as failed:
            await ctx.call(child, n=-1)
        assert isinstance(failed.value, ValueError)
        with pytest.raises(InputError):
            await ctx.call(child, "no number")
        other = await ctx.call(child.options(session_id="other", id="mine"), 2)
        return [await handle.result(), failed.value.step, other, await asyncio.gather(ctx.call("child", 5))]

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await ctx.start(child.options(detached=True, id="detached"), 101)
        await ctx.parallel(ctx.call(child.options(id="attached"), 102), ctx.sleep(1_000_000))

    async with TestEnvironment() as env:
        run = await env.start(parent, session_id="s", user_id="u")
        assert await run.result() == [[1, "s", "u"], "child", [2, "other", "u"], [[5, "s", "u"]]]
        assert env.replay(run).complete
        run = await env.start(waits)
        await run.cancel()
        assert (await run.wait()).status == "cancelled"
        assert (await env.handle("attached").wait()).status == "cancelled"
        assert (await env.handle("detached").wait()).status == "completed"


async def test_a_child_is_told_and_its_handle_may_be_given_up() -> None:
    @workflow
    async def child(ctx: WorkflowContext) -> Any:
        return await ctx.wait_for_signal("go")

    @workflow
    async def parent(ctx: WorkflowContext) -> list[Any]:
        first, second = await ctx.start(child), await ctx.start(child)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.result(), 5)
        await first.signal("go", "now")
        await second.cancel()
        with pytest.raises(ChildError):
            await second.result()
        return [await first.result(), await first.result()]

    async with TestEnvironment() as env:
        handle = await env.start(parent)
        assert await handle.result() == ["now", "now"]
        assert env.replay(handle).complete


async def test_emitted_events_have_a_stable_id() -> None:
    @workflow
    async def emits(ctx: WorkflowContext) -> None:
        await ctx.emit("user.welcomed", {"id": 1}, key="k", headers={"h": "v"})
        for wrong in ("", "no spaces", "..", "x" * 250):
            with pytest.raises(ValueError, match="topic"):
                ctx.emit(wrong, 1)

    async with TestEnvironment() as env:
        await env.run(emits)
        (event,) = env.emitted
        assert (event.topic, event.value, event.key, event.headers) == (
            "user.welcomed",
            {"id": 1},
            b"k",
            {"h": b"v"},
        )
        assert event.event_id == "run1/0"


async def test_now_random_and_uuid_are_the_same_in_a_replay() -> None:
    @workflow
    async def draws(ctx: WorkflowContext) -> list[Any]:
        found = [ctx.now().isoformat(), ctx.random().random(), ctx.random().random(), str(ctx.uuid()), str(ctx.uuid())]
        await ctx.sleep(1)
        return [*found, ctx.now().isoformat(), ctx.random().random(), str(ctx.uuid())]

    async with TestEnvironment() as env:
        handle = await env.start(draws)
        found = await handle.result()
        assert len({str(value) for value in found}) == len(found)
        assert env.replay(handle.history().to_json()).verified == 2


async def test_a_cancel_is_cancelled_error_and_cleaning_up_is_durable() -> None:
    cleaned: list[str] = []

    @function
    async def clean(what: str) -> None:
        cleaned.append(what)

    @workflow
    async def cleans(ctx: WorkflowContext) -> None:
        try:
            await ctx.parallel(ctx.sleep(1000), ctx.sleep(2000))
        finally:
            await ctx.step(clean, "one")
            await ctx.sleep(1)
            await ctx.step(clean, "two")

    @workflow
    async def survives(ctx: WorkflowContext) -> str:
        try:
            await ctx.sleep(1000)
        except asyncio.CancelledError:
            return "caught"
        return "never"

    @workflow
    async def stubborn(ctx: WorkflowContext) -> None:
        for _ in range(2):
            try:
                await ctx.sleep(1000)
            except asyncio.CancelledError:
                cleaned.append("once more")

    async with TestEnvironment() as env:
        handle = await env.start(cleans)
        await handle.cancel()
        assert (await handle.wait()).status == "cancelled"
        assert cleaned == ["one", "two"]
        assert env.replay(handle).complete
        handle = await env.start(survives)
        await handle.cancel()
        assert await handle.result() == "caught"
        handle = await env.start(stubborn)
        await handle.cancel()
        await handle.cancel()
        assert (await handle.wait()).status == "completed"
        assert cleaned[2:] == ["once more", "once more"]


async def test_a_runs_own_timeout_ends_it() -> None:
    @workflow(timeout=60)
    async def long(ctx: WorkflowContext) -> None:
        await ctx.sleep(3600)

    async with TestEnvironment() as env:
        handle = await env.start(long)
        with pytest.raises(RunError) as failed:
            await handle.result()
        assert isinstance(failed.value, TimeoutError)
        assert handle.status == "timeout"


async def test_steps_are_retried_with_skipped_waits_and_fatal_errors_are_not() -> None:
    tried: list[int] = []

    @function(retries=5)
    async def flaky(ctx: FunctionContext) -> int:
        tried.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("again")
        return ctx.attempt

    @function
    async def fatal() -> None:
        tried.append(-1)
        raise FatalError("no use")

    @function
    async def fails() -> None:
        raise KeyError("lost")

    @workflow
    async def retries(ctx: WorkflowContext) -> list[Any]:
        found: list[Any] = [await ctx.step(flaky)]
        with pytest.raises(StepError) as failed:
            await ctx.step(fatal)
        found.append([failed.value.attempts, failed.value.error_type])
        with pytest.raises(KeyError) as lost:
            await ctx.step(fails)
        found.append([lost.value.attempts, lost.value.step, lost.value.message])  # type: ignore[attr-defined]
        return found

    async with TestEnvironment() as env:
        assert await env.run(retries) == [3, [1, "FatalError"], [3, "fails", "'lost'"]]
        assert tried == [0, 1, 2, 3, -1]


async def test_a_step_that_exits_has_failed_and_the_test_goes_on() -> None:
    @function
    async def exits() -> None:
        sys.exit("no config")

    @workflow
    async def tries(ctx: WorkflowContext) -> str:
        try:
            await ctx.step(exits)
        except StepError as error:
            return f"{error.attempts} {error.error_type}: {error.message}"
        return "went on"

    async with TestEnvironment() as env:
        assert await env.run(tries) == "1 SystemExit: no config"


async def test_a_step_given_a_coroutine_is_retried_with_a_fresh_one() -> None:
    tried: list[int] = []

    @workflow
    async def flaky(ctx: WorkflowContext) -> int:
        await ctx.sleep(1)

        async def work() -> int:
            tried.append(1)
            if len(tried) < 3:
                raise ValueError("again")
            return len(tried)

        return int(await ctx.step("work", work()))

    async with TestEnvironment() as env:
        assert await env.run(flaky) == 3


async def test_mocks_stand_in_for_functions() -> None:
    @function
    async def charge(ctx: FunctionContext, order_id: str, amount: float = 1) -> dict[str, Any]:
        raise AssertionError("not in a test")

    @function(retries=2)
    async def ship(order_id: str) -> str:
        raise AssertionError("not in a test")

    @workflow
    async def order(ctx: WorkflowContext, order_id: str) -> list[Any]:
        return [await ctx.step(charge, order_id), await charge(ctx, order_id, 2), await ctx.step("x", lambda: 1)]

    @workflow
    async def shipping(ctx: WorkflowContext) -> None:
        await ctx.step(ship, "o")

    def charged(ctx: FunctionContext, order_id: str, amount: float = 1) -> dict[str, Any]:
        return {"id": order_id, "amount": amount, "run": ctx.run_id}

    async with TestEnvironment(mocks={charge: charged, "x": 5, ship: ValueError("no lorry")}) as env:
        assert await env.run(order, order_id="o1") == [
            {"id": "o1", "amount": 1, "run": "run1"},
            {"id": "o1", "amount": 2, "run": "run1"},
            5,
        ]
        assert (await env.run(order, {"order_id": "o2"}))[0]["id"] == (await env.run(order, "o2"))[0]["id"] == "o2"
        with pytest.raises(ValueError, match="no lorry") as failed:
            await env.run(shipping)
        assert isinstance(failed.value, StepError)
        assert isinstance(failed.value, RunError)
        assert failed.value.attempts == 2


async def test_a_mock_of_a_plain_function_gets_its_arguments_and_gives_what_it_returns() -> None:
    def price(item: str, count: int = 1) -> Decimal:
        raise AssertionError("not in a test")

    @workflow
    async def priced(ctx: WorkflowContext) -> list[Any]:
        batch = await ctx.map(price, ["b"])
        return [
            str(value + 1) for value in (await ctx.step(price, "a", count=2), await ctx.step("p", price, "c"), *batch)
        ]

    async with TestEnvironment(mocks={price: lambda item, count=1: Decimal(ord(item) + count)}) as env:
        assert await env.run(priced) == ["100", "101", "100"]


async def test_a_signal_whose_wait_is_given_up_before_its_turn_is_there_for_the_next_wait() -> None:
    @workflow(name="first_of_two")
    async def child(ctx: WorkflowContext) -> list[Any]:
        waits = [asyncio.ensure_future(ctx.wait_for_signal(name)) for name in ("paid", "shipped")]
        done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        return [*(one.result() for one in done), await ctx.wait_for_signal("shipped", timeout=60)]

    @workflow(name="sends_two")
    async def parent(ctx: WorkflowContext) -> Any:
        handle = await ctx.start(child)
        await ctx.parallel(handle.signal("paid", 1), handle.signal("shipped", 2))
        return await handle.result()

    async with TestEnvironment() as env:
        assert await env.run(parent) == [1, 2]


async def test_a_failed_run_goes_on_from_what_failed() -> None:
    done: list[str] = []

    @function(retries=1)
    async def charge() -> str:
        done.append("charge")
        return "charged"

    @function(retries=1)
    async def ship(ctx: FunctionContext) -> str:
        done.append("ship")
        if done.count("ship") < 3:
            raise ValueError("no lorry")
        return "shipped"

    @workflow(retries=2)
    async def order(ctx: WorkflowContext) -> list[Any]:
        count = await ctx.session.state.get("orders", 0)
        await ctx.session.state.set("orders", count + 1)
        charged = await ctx.step(charge)
        await ctx.sleep(3600)
        return [count, charged, await ctx.step(ship), ctx.attempt]

    async with TestEnvironment() as env:
        handle = await env.start(order)
        assert await handle.result() == [0, "charged", "shipped", 2]
        assert done == ["charge", "ship", "ship", "ship"]
        assert env.session_state(handle.run_id) == {"orders": 1}
        assert env.replay(handle).complete


async def test_a_child_that_failed_goes_on_when_the_next_attempt_of_its_parent_asks_for_it() -> None:
    done: list[str] = []

    @function(retries=1)
    async def charge() -> None:
        done.append("charge")

    @function(retries=1)
    async def ship() -> str:
        done.append("ship")
        if done.count("ship") < 3:
            raise ValueError("no lorry")
        return "shipped"

    @workflow(name="delivery", timeout=100)
    async def delivery(ctx: WorkflowContext) -> str:
        await ctx.step(charge)
        await ctx.sleep(60)
        return cast("str", await ctx.step(ship))

    @workflow(name="notice")
    async def notice(ctx: WorkflowContext) -> str:
        await ctx.sleep(30)
        return "noticed"

    @workflow(retries=2)
    async def order(ctx: WorkflowContext) -> list[Any]:
        noticed = await ctx.start(notice)  # completes while its parent's first attempt is in the other child
        shipped = await ctx.call(delivery)
        await ctx.sleep(60)
        return [await noticed.result(), shipped, ctx.attempt]

    async with TestEnvironment() as env:
        handle = await env.start(order)
        assert await handle.result() == ["noticed", "shipped", 2]
        assert done == ["charge", "ship", "ship", "ship"]
        assert env.replay(handle).complete


async def test_a_child_that_completed_after_its_parent_failed_is_not_waited_for_in_vain() -> None:
    @workflow(name="slow_child")
    async def slow(ctx: WorkflowContext) -> str:
        await ctx.sleep(30)
        return "slow"

    @function(retries=1)
    async def fails(ctx: FunctionContext, attempt: int) -> None:
        if not attempt:
            raise ValueError("once")

    @workflow(retries=1)
    async def parent(ctx: WorkflowContext) -> Any:
        if not ctx.attempt:
            await ctx.start(slow.options(id="named"))
            return await ctx.step(fails, ctx.attempt)
        await asyncio.sleep(60)  # the child has ended when it is asked for
        return await ctx.call(slow.options(id="named"))

    async with TestEnvironment() as env:
        assert await env.run(parent) == "slow"


async def test_a_new_attempt_has_the_whole_time_of_its_workflow() -> None:
    @function(retries=1)
    async def fails_once(attempt: int) -> int:
        if not attempt:
            raise ValueError("once")
        return attempt

    @workflow(timeout=100, retries=1)
    async def limited(ctx: WorkflowContext) -> Any:
        await ctx.sleep(60 + ctx.attempt, name=f"attempt {ctx.attempt}")
        return await ctx.step(fails_once, ctx.attempt)

    async with TestEnvironment() as env:
        assert await env.run(limited) == 1


async def test_progress_and_log_lines_are_live_only() -> None:
    @function
    async def speaks(ctx: FunctionContext) -> None:
        ctx.logger.info("working")

    @workflow
    async def tells(ctx: WorkflowContext) -> None:
        ctx.logger.info("begin %s", 1, extra={"a": 1})
        ctx.progress(0.5, "half")
        await ctx.sleep(1)
        await ctx.step(speaks)
        await speaks(ctx)
        ctx.logger.warning("end")

    async with TestEnvironment() as env:
        handle = await env.start(tells)
        await handle.result()
        assert [line[:2] for line in handle.logs] == [
            ("info", "begin 1"),
            ("info", "working"),
            ("info", "working"),
            ("warning", "end"),
        ]
        assert handle.logs[0][2] == {"a": 1}
        assert handle.progress == [(0.5, "half")]
        env.replay(handle)
        assert len(handle.logs) == 4


@pytest.mark.parametrize(
    ("forgotten", "named"),
    [
        (lambda ctx: ctx.sleep(1), "ctx.sleep"),
        (lambda ctx: ctx.state.set("a", 1), "ctx.state.set('a')"),
        (lambda ctx: ctx.session.state.set("a", 1), "ctx.session.state.set('a')"),
        (lambda ctx: ctx.session.state.get("a"), "ctx.session.state.get('a')"),
        (lambda ctx: ctx.user.state.set("a", 1), "ctx.user.state"),
        (lambda ctx: ctx.step("work", lambda: 1), "ctx.step(work)"),
        (lambda ctx: ctx.emit("t", 1), "ctx.emit('t')"),
        (lambda ctx: ctx.parallel(ctx.sleep(1)), "ctx.parallel"),
        (lambda ctx: ctx.batch(len, ["a"]), "ctx.batch"),
    ],
)
async def test_an_operation_never_awaited_fails_the_run_and_is_named(forgotten: Any, named: str) -> None:
    @workflow
    async def forgets(ctx: WorkflowContext) -> None:
        forgotten(ctx)
        await ctx.step("other", lambda: 1)

    async with TestEnvironment() as env:
        with pytest.raises(RunError) as failed:
            await env.run(forgets)
        assert "never awaited" in str(failed.value)
        assert named in str(failed.value)
        assert "test_workflow_context.py:" in str(failed.value)


async def test_what_is_too_large_or_no_json_is_refused_where_it_is_made() -> None:
    @function(retries=1)
    async def big() -> str:
        return "x" * 2000

    @function(retries=1)
    async def echo(x: Any) -> Any:
        return x

    @workflow
    async def large(ctx: WorkflowContext) -> list[str]:
        found = []
        for make in (
            lambda: ctx.state.set("a", "x" * 2000),
            lambda: ctx.session.state.set("a", "x" * 2000),
            lambda: ctx.step(echo, "x" * 2000),
            lambda: ctx.emit("t", "x" * 2000),
            lambda: ctx.step(big),
            lambda: ctx.state.set("a", object()),
            lambda: ctx.step("lock", lambda: asyncio.Lock()),
        ):
            try:
                await make()
            except Exception as error:
                found.append(str(error))
        return found

    @workflow
    async def large_output(ctx: WorkflowContext) -> str:
        return "x" * 2000

    async with TestEnvironment(max_payload=1500) as env:
        found = await env.run(large)
        assert all("1,500" in text for text in found[:5]), found
        assert "object" in found[5]
        assert "Lock" in found[6]
        assert len(found) == 7
        with pytest.raises(ValueError, match="1,500"):
            await env.run(large_output)


async def test_a_workflow_that_can_never_go_on_fails_and_says_where() -> None:
    @workflow
    async def stuck(ctx: WorkflowContext) -> None:
        await ctx.sleep(1)
        await asyncio.get_running_loop().create_future()

    async with TestEnvironment() as env:
        with pytest.raises(RuntimeError, match=r"never happen.*future") as failed:
            await env.run(stuck)
        assert "test_workflow_context.py" in str(failed.value)


async def test_a_ctx_used_outside_its_workflow_says_so() -> None:
    @workflow
    async def outside(ctx: WorkflowContext) -> None:
        await ctx.step("inner", lambda: ctx.sleep(1))

    async with TestEnvironment() as env:
        with pytest.raises(StepError, match="only in the workflow's own code"):
            await env.run(outside)


async def test_wrong_calls_say_what_to_write() -> None:
    @function
    async def one(x: int) -> int:
        return x

    @workflow
    async def child(ctx: WorkflowContext) -> None: ...

    @workflow
    async def wrong(ctx: WorkflowContext) -> list[str]:
        found = []
        for call in (
            lambda: ctx.step(one, 1, 2),
            lambda: ctx.step("on"),
            lambda: ctx.step(child),
            lambda: ctx.step(5),
            lambda: ctx.parallel(one),
            lambda: ctx.parallel(1),
            lambda: ctx.gather(1),
            lambda: ctx.call(one),
            lambda: ctx.batch(one, "text"),
            lambda: ctx.batch(one, [1], max_concurrency=0),
            lambda: ctx.wait_for_user(""),
            lambda: ctx.wait_for_user("?", input_type="radio"),
            lambda: ctx.wait_for_user("?", input_type="select"),
            lambda: ctx.wait_for_signal(""),
            lambda: ctx.state.get(1),
            lambda: ctx.state.update("a", 1),
            lambda: ctx.patched(""),
            lambda: ctx.batch(one, [1], timeout_per_item=1e300),
        ):
            try:
                call()
            except (TypeError, ValueError, LookupError) as error:
                found.append(str(error))
        return found

    async with TestEnvironment() as env:
        found = await env.run(wrong)
        assert len(found) == 18
        for text, hint in zip(
            found,
            ["one", "'one'", "ctx.call", "function", "call it", "coroutine", "by name", "ctx.step", "list", "from 1"],
            strict=False,
        ):
            assert hint in text


@pytest.mark.parametrize(
    "call",
    [
        lambda ctx, bad: ctx.step(bad, lambda: 1),
        lambda ctx, bad: ctx.sleep(1, name=bad),
        lambda ctx, bad: ctx.wait_for_user(bad),
        lambda ctx, bad: ctx.wait_for_user("?", "select", options=[bad]),
        lambda ctx, bad: ctx.wait_for_signal(bad),
        lambda ctx, bad: ctx.emit("topic", 1, headers={bad: "x"}),
        lambda ctx, bad: ctx.emit("topic", 1, key=bad),
        lambda ctx, bad: ctx.call(silent.options(id=bad)),
        lambda ctx, bad: ctx.call(silent.options(session_id=bad)),
        lambda ctx, bad: ctx.call(silent.options(user_id=bad)),
        lambda ctx, bad: ctx.state.set(bad, 1),
        lambda ctx, bad: ctx.patched(bad),
    ],
)
async def test_text_that_no_record_can_hold_fails_its_run_and_nothing_else(call: Any) -> None:
    @workflow
    async def quotes(ctx: WorkflowContext) -> None:
        await call(ctx, json.loads(r'"cut in half: \ud83d"'))

    async with TestEnvironment() as env:
        with pytest.raises(RunError, match="surrogate"):
            await env.run(quotes)


@pytest.mark.parametrize(
    "call",
    [
        lambda ctx, long: ctx.wait_for_user(long),
        lambda ctx, long: ctx.wait_for_user("?", "select", options=[long]),
        lambda ctx, long: ctx.emit("topic", 1, headers={"h": long}),
        lambda ctx, long: ctx.emit("topic", 1, key=long),
    ],
)
async def test_a_question_or_header_that_no_row_can_hold_fails_its_run_and_not_its_partition(call: Any) -> None:
    @workflow
    async def quotes(ctx: WorkflowContext) -> None:
        await call(ctx, "x" * 6_000_000)

    async with TestEnvironment() as env:
        handle = await env.start(quotes)
        assert handle.status == "failed"
        with pytest.raises(RunError, match="AGNT5_MAX_PAYLOAD_BYTES"):
            await handle.result()


async def test_what_is_declared_as_iterable_can_be_gone_through_again_and_handed_on() -> None:
    @function
    async def primes(below: Iterable[int] | None) -> Iterable[int]:
        assert below is not None
        return [n for n in (2, 3, 5, 7) if n < max(below) and n > min(below)]

    @workflow
    async def sums(ctx: WorkflowContext, limits: Iterable[int]) -> Iterable[int]:
        found = await ctx.step(primes, limits)
        return [sum(found), sum(found), sum(limits), sum(limits)]

    async with TestEnvironment() as env:
        assert await env.run(sums, limits=[2, 6]) == [8, 8, 8, 8]


async def test_a_test_has_the_limits_of_whole_states_that_a_processor_has() -> None:
    told: list[str] = []

    @workflow
    async def fills(ctx: WorkflowContext) -> list[list[str]]:
        for n in range(3):
            for state in (ctx.session.state, ctx.user.state):
                for write in (state.set(f"set{n}", "x" * 400), state.update(f"update{n}", lambda _: "x" * 400)):
                    try:
                        await write
                    except ValueError as error:
                        told.append(str(error))
        await ctx.wait_for_user("Go on?")
        for _ in range(4):
            told.append(await ctx.wait_for_signal("part"))
        return [await ctx.session.state.keys(), await ctx.user.state.keys()]

    async with TestEnvironment(max_payload=1024) as env:
        run = await env.start(fills, session_id="s", user_id="u")
        assert [text.partition("the state of ")[2][:6] for text in told] == ["user u"] * 2 + ["sessio"] + ["user u"] * 2
        told.clear()
        for n in range(4):
            await run.signal("part", str(n) + "x" * 500)
        with pytest.raises(ValueError, match="4 signals that it has not taken"):
            await run.signal("part", "x" * 500)
        await run.answer("yes")
        assert await run.result() == [["set0", "set1", "set2", "update0", "update1"], ["set0", "update0"]]
        assert [text[:2] for text in told] == ["0x", "1x", "2x", "3x"]
        assert env.replay(run).complete


@workflow
async def silent(ctx: WorkflowContext) -> None: ...


@pytest.mark.parametrize("label", [None, 5])
async def test_an_options_label_that_is_no_text_fails_its_run_and_not_the_list_of_all_questions(label: Any) -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> None:
        await ctx.wait_for_user("Which?", "select", options=[{"id": "a", "label": label}])

    async with TestEnvironment() as env:
        with pytest.raises(RunError, match='"label" of an option must be text'):
            await env.run(asks)


async def test_a_waiting_run_that_nobody_answers_is_an_error_that_names_it() -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> None:
        await ctx.wait_for_user("Well?")

    async with TestEnvironment() as env:
        with pytest.raises(RuntimeError, match=r"asks.*handle\.answer"):
            await env.run(asks)
