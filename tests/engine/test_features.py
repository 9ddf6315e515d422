"""Every durable operation on the real engine, live and over a crash."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from agnt5 import ChildError, FatalError, FunctionContext, Workflow, WorkflowContext, function, workflow
from agnt5.testing import TestEnvironment
from agnt5.types import event
from agnt5_engine.ports import Refused
from agnt5_engine.records.routing import session_key
from agnt5_engine.runs.checkpoint import forget_clean
from tests.engine.conftest import Engine

CALLS: list[str] = []


@function
async def double(ctx: FunctionContext, n: int) -> int:
    CALLS.append(ctx.idempotency_key)
    return n * 2


@function(retries={"max_attempts": 3, "initial_interval_ms": 10})
async def flaky(ctx: FunctionContext) -> int:
    if ctx.attempt < 2:
        raise ValueError(f"attempt {ctx.attempt}")
    return ctx.attempt


@function(retries=1)
def refuses(reason: str) -> None:
    raise ValueError(reason)


@workflow
async def asks(ctx: WorkflowContext) -> dict:
    decision = await ctx.wait_for_user("Approve?", input_type="approval")
    return {"decision": decision, "doubled": await ctx.step(double, 4)}


async def test_an_answer_reaches_its_run_after_a_crash_and_a_wrong_one_is_refused(engine: Engine) -> None:
    run_id = await engine.submit("asks")
    await engine.restart(crash=True)
    run = await engine.processor.run(run_id)
    assert run.status == "awaiting_user_input"
    assert [a.question for a in await engine.processor.approvals()] == ["Approve?"]
    with pytest.raises(Refused) as refused:
        await engine.processor.answer(run_id, "perhaps", None, "ann")
    assert refused.value.reason == "invalid_answer"
    await engine.processor.answer(run_id, "approve", None, "ann")
    assert (await engine.processor.finished(run_id)).output == {"decision": "approve", "doubled": 8}
    with pytest.raises(Refused) as late:
        await engine.processor.answer(run_id, "reject", None, "bob")
    assert late.value.reason == "already_answered", "also when the run has ended"
    assert late.value.detail == {"entry": "0", "response": "approve", "answered_by": "ann"}
    assert await engine.processor.approvals() == []


@workflow
async def signalled(ctx: WorkflowContext) -> list:
    first = await ctx.wait_for_signal("go")
    await ctx.step(double, 1)
    return [first, await ctx.wait_for_signal("go"), await ctx.wait_for_signal("other")]


async def test_signals_are_buffered_in_order_and_deduplicated(engine: Engine) -> None:
    run_id = await engine.submit("signalled")
    for payload, id in ((1, "a"), (2, "b"), (2, "b")):
        await engine.processor.signal(run_id, "go", payload, id)
    await engine.restart(crash=True)
    await engine.processor.signal(run_id, "other", 3, None)
    assert (await engine.processor.finished(run_id)).output == [1, 2, 3]


async def test_whoever_sends_a_signal_that_is_on_its_way_already_is_told_of_it_too(engine: Engine) -> None:
    one, other = [await engine.submit("signalled", session_id="s") for _ in range(2)]
    sent = [engine.processor.signal(run_id, "go", 1, "a") for run_id in (one, one, other, one, other)]
    await asyncio.wait_for(asyncio.gather(*sent), 10)
    owner = engine.processor.local.owner(one)
    assert [len(owner.state.runs[run_id].commands) for run_id in (one, other)] == [1, 1]
    assert not owner.live._verdicts


@workflow
async def parent(ctx: WorkflowContext, n: int) -> dict:
    handle = await ctx.start(child, n)
    return {"called": await ctx.call(child, n + 1), "started": await handle.result()}


@workflow
async def child(ctx: WorkflowContext, n: int) -> int:
    await ctx.sleep(0.05)
    count = await ctx.session.state.update("children", lambda c: c + 1, 0)
    return await ctx.step(double, n) + 0 * count


async def test_children_run_in_their_parents_session(engine: Engine) -> None:
    run = await engine.run("parent", b'{"n": 1}', session_id="s1")
    assert run.output == {"called": 4, "started": 2}
    page = await engine.processor.runs(session_id="s1")
    assert sorted(r.workflow for r in page.items) == ["child", "child", "parent"]
    assert {r.parent_run_id for r in page.items} == {None, run.run_id}


@workflow
async def counts(ctx: WorkflowContext) -> int:
    n = await ctx.session.state.get("n", 0)
    await ctx.session.state.set("n", n + 1)
    await ctx.user.state.update("total", lambda t: t + 1, 0)
    return n + 1


@workflow
async def total(ctx: WorkflowContext) -> int:
    return await ctx.user.state.get("total", 0)


async def test_session_and_user_counters_lose_nothing_over_crashes(engine: Engine) -> None:
    ids: list[str] = []
    for round in range(3):
        ids += await asyncio.gather(*(engine.submit("counts", session_id=f"s{i % 2}", user_id="u") for i in range(10)))
        await engine.restart(crash=round % 2 == 0)
    runs = [await engine.processor.finished(run_id) for run_id in ids]
    assert sorted(r.output for r in runs) == sorted([*range(1, 16), *range(1, 16)])
    assert (await engine.run("total", user_id="u")).output == 30


@workflow
async def retried(ctx: WorkflowContext) -> int:
    return await ctx.step(flaky)


async def test_a_step_is_tried_again_and_its_attempts_are_in_the_history(engine: Engine) -> None:
    run = await engine.run("retried")
    assert run.output == 2
    events = await engine.processor.events(run.run_id)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    failed = [e for e in events if e.type == "workflow.step.failed"]
    assert [type(datetime.fromisoformat(e.data["retry_at"])) for e in failed] == [datetime] * 2
    assert events[-1].type == "run.completed"


@workflow
async def fails(ctx: WorkflowContext) -> None:
    await ctx.step(double, 1)
    await ctx.step(refuses, "no stock")


async def test_a_failed_run_says_why_and_goes_on_from_what_failed(engine: Engine) -> None:
    before = len(CALLS)
    run = await engine.run("fails")
    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.type, run.error.message, run.error.step) == ("ValueError", "no stock", "refuses")
    await engine.processor.retry(run.run_id)
    again = await engine.processor.finished(run.run_id)
    assert again.status == "failed"
    assert len(CALLS) == before + 1


@workflow(timeout=0.2)
async def too_long(ctx: WorkflowContext) -> None:
    await ctx.sleep(3600)


@workflow
async def cleans_up(ctx: WorkflowContext) -> None:
    try:
        await ctx.sleep(3600)
    finally:
        await ctx.step(double, 21)


async def test_cancel_and_time_out_end_runs_after_their_clean_up(engine: Engine) -> None:
    assert (await engine.run("too_long")).status == "timeout"
    run_id = await engine.submit("cleans_up")
    before = len(CALLS)
    await engine.processor.cancel(run_id, force=False)
    assert (await engine.processor.finished(run_id)).status == "cancelled"
    assert len(CALLS) == before + 1


@workflow
async def in_place(ctx: WorkflowContext) -> int:
    n = await double(ctx, 5)
    await ctx.sleep(0.05)
    return n + await double(ctx, n)


async def test_an_in_place_call_is_awaited_and_run_again_after_a_crash(engine: Engine) -> None:
    assert (await engine.run("in_place")).output == 30


@workflow
async def many(ctx: WorkflowContext, n: int) -> dict:
    result = await ctx.batch(double, list(range(n)), max_concurrency=200)
    return {"done": result.stats.completed_items, "sum": sum(result.outputs)}


async def test_ten_thousand_items_complete_and_a_restart_runs_no_completed_item_again(engine: Engine) -> None:
    CALLS.clear()
    run_id = await engine.submit("many", b'{"n": 10000}')

    async def half_done() -> bool:
        return len(CALLS) > 4000

    await engine.until(half_done)
    await engine.restart(crash=True)
    run = await asyncio.wait_for(engine.processor.finished(run_id), 60)
    assert run.output == {"done": 10000, "sum": 2 * sum(range(10000))}
    assert len(set(CALLS)) == 10000
    assert len(CALLS) <= 10000 + 200 + 1000  # what was in flight, or done and not yet acknowledged


@workflow(triggers=[event("made.here")])
async def listens(ctx: WorkflowContext, n: int) -> int:
    return n


@workflow
async def emits(ctx: WorkflowContext, n: int) -> str:
    await ctx.emit("made.here", {"n": n})
    return "sent"


async def test_an_emitted_event_starts_its_subscriber_once(engine: Engine) -> None:
    assert (await engine.run("emits", b'{"n": 7}')).output == "sent"

    async def heard() -> list:
        return [r.output for r in (await engine.processor.runs(workflow="listens", status="completed")).items]

    assert await engine.until(heard) == [7]


@workflow
async def local_steps(ctx: WorkflowContext) -> list:
    async def tell() -> str:
        return "from a coroutine"

    one = await ctx.step("one", tell())
    two = await ctx.step("two", lambda: 2)
    return [one, two, await ctx.step("double", 3)]


async def test_steps_without_a_registered_function_run_and_are_kept(engine: Engine) -> None:
    assert (await engine.run("local_steps")).output == ["from a coroutine", 2, 6]


TRIES: list[int] = []


@workflow
async def retries_a_coroutine(ctx: WorkflowContext) -> str:
    async def third_time_lucky() -> str:
        TRIES.append(1)
        if len(TRIES) < 3:
            raise ConnectionError("not yet")
        return "there"

    await ctx.step(double, 1)
    return await ctx.step("lucky", third_time_lucky())


async def test_a_step_given_a_coroutine_is_tried_again_with_a_fresh_one(engine: Engine) -> None:
    run = await engine.run("retries_a_coroutine")
    assert (run.status, run.output) == ("completed", "there"), run.error


FRESH: list[int] = []


@workflow
async def retries_a_coroutine_after_a_call(ctx: WorkflowContext) -> str:
    async def second_time_lucky() -> str:
        FRESH.append(1)
        if len(FRESH) < 2:
            raise ConnectionError("not yet")
        return "there"

    await slow(ctx, 0.01)
    return await ctx.step("lucky", second_time_lucky())


async def test_the_call_that_makes_a_fresh_coroutine_is_made_though_nothing_else_happens_in_the_partition(
    engine: Engine,
) -> None:
    run = await engine.run("retries_a_coroutine_after_a_call")
    assert (run.status, run.output) == ("completed", "there"), run.error


@function
async def slow(ctx: FunctionContext, seconds: float) -> None:
    await asyncio.sleep(seconds)


OWN: list[int] = []


@workflow
async def has_a_step_of_its_own(ctx: WorkflowContext) -> list:
    async def own() -> str:
        OWN.append(1)
        if len(OWN) == 1:
            raise ConnectionError("not yet")
        return "done"

    await slow(ctx, 0.6)
    return await ctx.parallel(ctx.step("own", own), ctx.wait_for_signal("go"))


async def test_a_step_waits_for_the_code_it_is_part_of_to_be_rebuilt(engine: Engine) -> None:
    run_id = await engine.submit("has_a_step_of_its_own")
    owner = engine.processor.local_owner(run_id)
    assert owner is not None

    async def again_at() -> int | None:
        run = owner.state.run(run_id)
        return next((p.retry_at for p in run.pending.values() if p.retry_at), None) if run is not None else None

    due = await engine.until(again_at)
    while owner.state.dirty_runs:
        await asyncio.sleep(0.02)
    forget_clean(owner.state, keep=0)
    assert run_id not in owner.state.runs
    await asyncio.sleep((due - owner.timers.now()) / 1000 - 0.3)
    await engine.processor.signal(run_id, "go", "signalled", None)  # the rebuild calls `slow` again meanwhile
    run = await asyncio.wait_for(engine.processor.finished(run_id), 30)
    assert (run.status, run.output) == ("completed", ["done", "signalled"]), run.error
    failed = [e for e in await engine.processor.events(run_id) if e.type == "workflow.step.failed"]
    assert [e.data["error"]["message"] for e in failed] == ["not yet"]


@workflow
async def remembers(ctx: WorkflowContext) -> None:
    await ctx.state.set("phase", "waiting")
    await ctx.wait_for_signal("never")


async def test_run_state_can_be_read_from_outside_after_a_crash(engine: Engine) -> None:
    run_id = await engine.submit("remembers")
    await engine.restart(crash=True)
    assert await engine.processor.state(run_id) == {"phase": "waiting"}


@workflow
async def remembers_and_ends(ctx: WorkflowContext, how: str) -> None:
    await ctx.state.set("phase", "begun")
    await ctx.step(double, 1)
    await ctx.state.set("phase", how)
    if how == "failed":
        await ctx.step(refuses, "no")
    if how == "cancelled":
        await ctx.wait_for_signal("never")


ENDS = ("completed", "failed", "cancelled")


async def test_the_state_of_a_run_that_has_ended_can_still_be_read(engine: Engine) -> None:
    ids = {how: await engine.submit("remembers_and_ends", b'{"how": "%s"}' % how.encode()) for how in ENDS}
    await engine.until(lambda: _waits_for_a_signal(engine, ids["cancelled"]))
    await engine.processor.cancel(ids["cancelled"], force=True)
    for crash in (False, True):
        for how, run_id in ids.items():
            assert (await engine.processor.finished(run_id)).status == how
            assert await engine.processor.state(run_id) == {"phase": how}
        await engine.restart(crash=crash)


async def _waits_for_a_signal(engine: Engine, run_id: str) -> bool:
    return any(w.kind == "signal" for w in (await engine.processor.run(run_id)).waiting_on)


@workflow
async def ends_after_a_call_in_place(ctx: WorkflowContext) -> None:
    await slow(ctx, 0.01)
    await ctx.state.set("phase", "called")


async def test_a_state_that_cannot_be_told_any_more_is_not_shown_as_empty(engine: Engine) -> None:
    run = await engine.run("ends_after_a_call_in_place")
    with pytest.raises(Refused) as refused:
        await engine.processor.state(run.run_id)
    assert refused.value.reason == "state_unknown"


@workflow
async def looks_up_and_remembers(ctx: WorkflowContext) -> None:
    await slow(ctx, 0.01)
    await ctx.state.set("phase", "waiting")
    await ctx.wait_for_signal("never")


async def test_the_state_of_a_run_that_has_left_memory_is_read_though_nothing_else_happens_in_its_partition(
    engine: Engine,
) -> None:
    run_id = await engine.submit("looks_up_and_remembers")
    owner = engine.processor.local_owner(run_id)
    assert owner is not None

    async def waits() -> bool:
        return any(w.kind == "signal" for w in (await engine.processor.run(run_id)).waiting_on)

    await engine.until(waits)
    await owner.checkpoints.write()
    forget_clean(owner.state, keep=0)
    assert run_id not in owner.state.runs
    assert await asyncio.wait_for(engine.processor.state(run_id), 10) == {"phase": "waiting"}


@workflow
async def writes_often(ctx: WorkflowContext, times: int) -> int:
    await ctx.user.state.set("profile", "x" * 60_000)
    for _ in range(times):
        await ctx.user.state.update("n", lambda n: n + 1, 0)
    return await ctx.user.state.get("n")


async def test_a_user_whose_state_is_written_often_does_not_outgrow_a_checkpoint(engine: Engine) -> None:
    run_id = await engine.submit("writes_often", b'{"times":100}', user_id="ann")
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 30)).output == 100
    await asyncio.sleep(0.5)
    assert all(up for _, up in engine.processor.readiness())
    await engine.restart()
    assert all(up for _, up in engine.processor.readiness())


@workflow
async def hoards(ctx: WorkflowContext) -> list:
    await ctx.user.state.set("a", "x" * 700_000)
    told = []
    for write in (
        lambda: ctx.user.state.set("b", "x" * 700_000),
        lambda: ctx.user.state.update("b", lambda b: "x" * 700_000),
    ):
        try:
            await write()
        except ValueError as error:
            told.append(str(error))
    await ctx.wait_for_signal("go")
    await ctx.user.state.delete("a")
    await ctx.user.state.set("b", "x" * 700_000)
    return [*told, await ctx.user.state.keys()]


async def test_a_write_with_which_a_user_s_state_could_not_be_read_any_more_is_refused(engine: Engine) -> None:
    run_id = await engine.submit("hoards", user_id="ann")
    await asyncio.sleep(1)
    await engine.restart(crash=True)
    await engine.processor.signal(run_id, "go", None, None)
    run = await asyncio.wait_for(engine.processor.finished(run_id), 20)
    first, second, keys = run.output
    assert "1,400,0" in first
    assert "AGNT5_MAX_PAYLOAD_BYTES" in first
    assert (second, keys) == (first, ["b"])


@workflow
async def deaf(ctx: WorkflowContext) -> list[int]:
    await ctx.wait_for_user("Go on?")
    return [(await ctx.wait_for_signal("part"))[0] for _ in range(4)]


async def test_signals_that_wait_for_their_run_do_not_outgrow_a_checkpoint(engine: Engine) -> None:
    run_id = await engine.submit("deaf")
    refused = []
    for n in range(8):
        try:
            await engine.processor.signal(run_id, "part", [n, "x" * 900_000], str(n))
        except Refused as error:
            refused.append((n, error.reason))
    assert refused == [(n, "signals_waiting") for n in range(2, 8)]
    await asyncio.sleep(0.5)
    await engine.restart(crash=True)
    await engine.processor.answer(run_id, "yes", None, "ann")
    for n in (2, 3):  # there is room again, and what was refused was not remembered as sent
        await engine.processor.signal(run_id, "part", [n, "x" * 900_000], str(n))
    assert (await asyncio.wait_for(engine.processor.finished(run_id), 30)).output == [0, 1, 2, 3]


@workflow
async def fills(ctx: WorkflowContext) -> list:
    told = []
    for n in range(4):
        try:
            await ctx.session.state.set(str(n), "x" * 900_000)
        except ValueError as error:
            told.append((n, "the state of session s would have" in str(error)))
    try:
        await ctx.session.state.update("4", lambda _: "x" * 900_000)
    except ValueError:
        told.append((4, True))
    await ctx.wait_for_signal("go")
    await ctx.session.state.delete("0")
    await ctx.session.state.update("3", lambda _: "x" * 900_000)
    return [told, await ctx.session.state.keys()]


async def test_a_write_with_which_a_session_would_outgrow_a_checkpoint_is_refused(engine: Engine) -> None:
    run_id = await engine.submit("fills", session_id="s")
    await asyncio.sleep(1)
    assert all(up for _, up in engine.processor.readiness())
    await engine.restart(crash=True)
    await engine.processor.signal(run_id, "go", None, None)
    run = await asyncio.wait_for(engine.processor.finished(run_id), 20)
    assert run.output == [[[2, True], [3, True], [4, True]], ["1", "3"]]


@workflow
async def undoes_what_it_did(ctx: WorkflowContext, in_place: bool) -> None:
    try:
        await ctx.wait_for_signal("never")
    finally:
        if in_place:
            await slow(ctx, 0.3)
        else:
            await ctx.sleep(0.3)
        await ctx.session.state.set("undone", True)


@workflow
async def was_undone(ctx: WorkflowContext) -> bool:
    return await ctx.session.state.get("undone", False)


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_run_that_undoes_what_it_did_is_not_disturbed_when_it_is_cancelled_again(
    engine: Engine, in_place: bool
) -> None:
    given = b'{"in_place": true}' if in_place else b'{"in_place": false}'
    run_id = await engine.submit("undoes_what_it_did", given, session_id="s")
    await engine.until(lambda: _waits_for_a_signal(engine, run_id))
    told = [engine.processor.cancel(run_id, force=False) for _ in range(3)]  # as a client does that got no answer
    assert (await asyncio.wait_for(asyncio.gather(*told, return_exceptions=True), 10))[0] is None
    assert (await engine.processor.finished(run_id)).status == "cancelled"
    assert (await engine.run("was_undone", session_id="s")).output is True


@workflow
async def long_winded(ctx: WorkflowContext) -> str:
    try:
        await ctx.wait_for_user("x" * 6_000_000)
    except ValueError as error:
        return str(error)
    return ""


async def test_a_question_that_is_too_large_is_refused_where_it_is_asked(engine: Engine) -> None:
    run_id = await engine.submit("long_winded")
    assert "AGNT5_MAX_PAYLOAD_BYTES" in (await asyncio.wait_for(engine.processor.finished(run_id), 10)).output


class CardInputError(ValueError):
    """Not the engine's InputError."""


class CardDeclined(FatalError):
    """Never tried again."""


@function
async def charges(fatal: bool) -> None:
    CALLS.append("charged")
    raise CardDeclined("no money") if fatal else CardInputError("a digit is missing")


@workflow(retries=1)
async def charged_again(ctx: WorkflowContext, fatal: bool) -> None:
    await ctx.step(charges.options(retries=1), fatal)


async def test_only_what_is_fatal_keeps_a_failed_run_from_its_retries(engine: Engine) -> None:
    for fatal, times in ((False, 2), (True, 1)):
        CALLS.clear()
        run = await engine.run("charged_again", b'{"fatal":%s}' % str(fatal).lower().encode())
        assert (run.status, len(CALLS)) == ("failed", times)


@workflow
async def asks_for(ctx: WorkflowContext) -> list:
    return [await ctx.wait_for_signal("go"), await ctx.wait_for_user("Sure?")]


@workflow
async def names_its_child(ctx: WorkflowContext) -> str:
    return (await ctx.start(asks_for.options(id="Order_7-b"))).run_id


async def test_a_child_is_reached_by_the_id_that_its_parent_gave_it(engine: Engine) -> None:
    assert (await engine.run("names_its_child")).output == "Order_7-b"

    async def waits() -> bool:
        return any(run.run_id == "Order_7-b" for run in (await engine.processor.runs()).items)

    await engine.until(waits)
    assert (await engine.processor.run("Order_7-b")).workflow == "asks_for"
    await engine.processor.signal("Order_7-b", "go", 1, None)
    await engine.restart(crash=True)
    await engine.processor.answer("Order_7-b", "yes", None, "ann")
    assert (await asyncio.wait_for(engine.processor.finished("Order_7-b"), 10)).output == [1, "yes"]


@workflow
async def counts_in_its_session(ctx: WorkflowContext) -> list:
    n = await ctx.session.state.update("n", lambda n: n + 1, 0)
    return [ctx.session_id == ctx.run_id, n, ctx.run_id]


@workflow
async def calls_by_name(ctx: WorkflowContext) -> list:
    await ctx.session.state.set("n", 5)
    told = [await ctx.call(counts_in_its_session)]
    told.append(await ctx.call(counts_in_its_session.options(id="order-42")))
    told.append(await ctx.call(counts_in_its_session.options(id="order-42", session_id=ctx.session_id)))
    return told


async def test_a_child_s_state_is_that_of_the_session_which_it_says_it_is_in(engine: Engine) -> None:
    started = await engine.submit("calls_by_name", session_id="s")
    run = await asyncio.wait_for(engine.processor.finished(started), 20)
    async with TestEnvironment() as env:
        tested = await env.run(calls_by_name.options(session_id="s"))
    for told in (run.output, tested):
        first, second, third = told
        assert first[:2] == [False, 6]
        assert second == [True, 1, "order-42"]
        assert third == [False, 7, f"{session_key('s')}.order-42"]
    assert (await engine.processor.run("order-42")).status == "completed"


@workflow
async def takes_a_name(ctx: WorkflowContext) -> str:
    return "first"


@workflow
async def wants_the_same_name(ctx: WorkflowContext) -> list:
    told = [await ctx.call(takes_a_name.options(id="taken")), await ctx.call(takes_a_name.options(id="taken"))]
    try:
        await ctx.call(counts_in_its_session.options(id="taken"))
    except ChildError as error:
        told.append(str(error))
    return told


async def test_a_child_is_not_given_the_result_of_another_workflow_s_run_that_has_its_id(engine: Engine) -> None:
    run = await engine.run("wants_the_same_name")
    async with TestEnvironment() as env:
        assert await env.run(wants_the_same_name) == run.output
    assert run.output[:2] == ["first", "first"]
    assert "takes_a_name" in run.output[2]
    assert "counts_in_its_session" in run.output[2]


@workflow
async def cancelled_child(ctx: WorkflowContext) -> str:
    child = await ctx.start(forever)
    await child.cancel()
    try:
        await child.result()
    except ChildError as error:
        return str(error).replace(child.run_id, "ID")
    return "it ended"


@workflow
async def late_child(ctx: WorkflowContext) -> str:
    child = await ctx.start(never_done)
    try:
        await child.result()
    except ChildError as error:
        return str(error).replace(child.run_id, "ID")
    return "it ended"


@workflow
async def forever(ctx: WorkflowContext) -> None:
    await ctx.wait_for_signal("never")


@workflow(timeout=0.2)
async def never_done(ctx: WorkflowContext) -> None:
    await ctx.wait_for_signal("never")


@pytest.mark.parametrize("parent", [cancelled_child, late_child])
async def test_a_parent_is_told_the_same_of_its_child_in_the_test_environment(
    parent: Workflow[str], engine: Engine
) -> None:
    async with TestEnvironment() as env:
        told = await env.run(parent)
    assert (await engine.run(parent.name)).output == told
