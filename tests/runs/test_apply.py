"""Guarantees of applying, told record by record. What random worlds found is kept here in its smallest form."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from pydantic_core import from_json

from agnt5 import WorkflowContext, workflow
from agnt5_engine.records.avro import decode
from agnt5_engine.records.journal import (
    CallInterrupted,
    CancelRequested,
    ChildFinished,
    Delivered,
    OwnerClaimed,
    Replied,
    RetryRequested,
    RunParked,
    RunRequested,
    SignalSent,
    StateWritten,
    StepFailed,
    StepIsolated,
    StepRestarted,
    StepSucceeded,
    TimerFired,
    UserResponded,
    UserStateAsked,
)
from agnt5_engine.runs import history as h
from agnt5_engine.runs import table
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.effects import Abandon, Append, Call, Execute, InterruptCall, Send, SetTimer
from tests.runs.bench import Partition
from tests.runs.programs import child, quick, work


@workflow(name="apply.one")
async def one(ctx: WorkflowContext) -> Any:
    return await ctx.step(work, 1, 0)


@workflow(name="apply.boom", retries=1)
async def boom(ctx: WorkflowContext) -> str:
    if ctx.attempt == 0:
        raise ValueError("the first attempt fails")
    return "done"


def test_a_step_that_was_retried_across_a_checkpoint_leaves_no_row_behind() -> None:
    p = Partition(one)
    p.request(one)
    p.checkpoint()
    p.apply(StepFailed("run", "0", 0, "ValueError", "no", "", p.clock, p.state.claim))
    p.succeed("0", ["worked", 1], attempt=1)
    p.end()
    p.checkpoint()
    assert list(p.store.scan(table.PENDING)) == []
    p.crash()
    assert p.asked(Execute) == []
    assert p.run().status == "completed"


def test_public_event_numbers_have_no_gap_after_a_retry_of_the_run() -> None:
    p = Partition(boom)
    p.request(boom)
    run = p.run()
    p.end()
    p.end()
    events = [event for row in run.history for event in h.public_events(row)]
    assert [event.seq for event in events] == [1, 2, 3]
    assert run.seq == 3


# ------------------------------------------------------------------ what waits for an in-place call


@workflow(name="apply.signals")
async def signals(ctx: WorkflowContext) -> list[Any]:
    first = await ctx.wait_for_signal("go")
    await quick(ctx, 1)
    return [first, await ctx.wait_for_signal("go")]


def test_a_signal_is_taken_once_though_the_code_then_calls_a_function_in_place() -> None:
    p = Partition(signals)
    p.request(signals)
    p.apply(SignalSent("run", "one", "go", b'"one"'))
    p.finish_calls()
    assert [row.path for row in p.run().history if row.event == h.RESOLVED] == ["0"]
    p.apply(SignalSent("run", "two", "go", b'"two"'))
    p.end()
    assert from_json(p.run().output or b"") == ["one", "two"]


@workflow(name="apply.limited", timeout=5)
async def limited(ctx: WorkflowContext) -> str:
    try:
        await ctx.sleep(60)
    except asyncio.CancelledError:
        await quick(ctx, 1)
        raise
    return "awake"


@workflow(name="apply.listener")
async def listener(ctx: WorkflowContext) -> None:
    while True:
        await ctx.wait_for_signal("tick")


def largest_row(p: Partition) -> int:
    return max(len(row.value) for row in p.checkpoint() if row.value is not None)


def test_the_row_of_a_run_does_not_grow_with_every_signal_that_it_has_taken() -> None:
    p = Partition(listener)
    p.request(listener)
    for n in range(5_000):
        p.apply(SignalSent("run", f"signal:{n:0255}", "tick", b"1"))
    assert p.verdicts(f"signal:{4_999:0255}") == [None]
    p.apply(SignalSent("run", f"signal:{4_990:0255}", "tick", b"1"))  # sent again: taken once
    assert sum(row.event == h.RESOLVED for row in p.run().history) == 5_000
    assert largest_row(p) < 1_200_000


def test_the_names_of_signals_that_wait_count_too() -> None:
    p = Partition(listener)
    p.state.code.max_payload = 50_000  # type: ignore[misc]
    p.request(listener)
    for n in range(500):
        p.apply(SignalSent("run", f"signal:{n}", "x" * 255, b"1"))
    assert p.verdicts("signal:499") == ["signals_waiting"]
    assert largest_row(p) < 120_000


def test_a_time_out_whose_clean_up_calls_a_function_in_place_survives_the_owner() -> None:
    p = Partition(limited)
    p.request(limited)
    p.clock += 5000
    p.apply(TimerFired("run", "timeout", p.state.claim))
    assert p.asked(Call)
    p.checkpoint()
    p.crash()
    p.finish_calls()
    p.end()
    assert p.run().status == "timeout"


def test_a_run_that_waited_for_its_workflow_s_code_has_the_workflow_s_time_out() -> None:
    p = Partition(limited)
    del p.code.workflows[limited.name]
    p.request(limited)
    assert p.run().pause_reason == "unknown_workflow"
    p.code.workflows[limited.name] = limited
    p.apply(OwnerClaimed("newer code", "2"))
    assert p.run().status == "running"
    due = next(e.due for e in p.asked(SetTimer) if e.path == "timeout")
    assert due == p.run().created_at + 5000
    p.clock = due
    p.apply(TimerFired("run", "timeout", p.state.claim))
    p.finish_calls()
    p.end()
    assert p.run().status == "timeout"


@workflow(name="apply.caller")
async def caller(ctx: WorkflowContext) -> int:
    return await quick(ctx, 1) + await quick(ctx, 2)


def test_a_call_that_was_given_up_is_not_taken_for_one_of_the_next_run_of_the_session() -> None:
    p = Partition(caller)
    p.request(caller, "s.one", "s")
    p.request(caller, "s.two", "s")
    given_up = p.asked(Call)[0]
    p.apply(CancelRequested("s.one", "cancel", True))
    p.interrupt()
    assert p.run("s.one").status == "cancelled"
    p.finish_call(given_up, TimeoutError("interrupted"))
    p.finish_calls()
    p.end("s.two")
    assert from_json(p.run("s.two").output or b"") == 9


def test_a_cancel_between_two_in_place_calls_is_replayed_between_them() -> None:
    p = Partition(persistent)
    p.request(persistent)
    run = p.run()
    p.finish_call(p.asked(Call)[0])
    p.apply(CancelRequested("run", "cancel", False))
    p.finish_call(p.asked(Call)[0])  # too late
    p.interrupt()
    assert p.asked(InterruptCall)
    drop_activation(run)
    p.succeed("0", ["worked", 7])
    p.finish_calls()
    p.end()
    assert from_json(p.run().output or b"") == ["worked", 7]


@workflow(name="apply.persistent")
async def persistent(ctx: WorkflowContext) -> Any:
    try:
        await quick(ctx, 1)
        await quick(ctx, 2)
    except asyncio.CancelledError:
        return await ctx.step(work, 7, 0)
    return "not cancelled"


def test_a_new_owner_interrupts_calls_where_the_one_before_did() -> None:
    p = Partition(persistent)
    p.request(persistent)
    p.finish_call(p.asked(Call)[0])
    p.apply(CancelRequested("run", "cancel", False))
    p.interrupt()
    p.crash()  # nothing but the journal
    assert not p.asked(Execute), "it is not known yet how far the calls get"
    p.finish_call(p.asked(Call)[0])
    assert not p.asked(Call) or p.asked(InterruptCall)
    p.succeed("0", ["worked", 7])
    p.end()
    assert from_json(p.run().output or b"") == ["worked", 7]


def test_a_cancel_that_came_after_the_calls_had_returned_is_told_after_them_by_a_new_owner_too() -> None:
    p = Partition(caller_and_worker)
    p.request(caller_and_worker)
    p.finish_calls()
    p.apply(CancelRequested("run", "cancel", False))
    p.crash()
    assert not [e for e in p.asked(Append) if isinstance(e.record, CallInterrupted)]
    p.finish_calls()
    p.end()
    assert [row.event for row in p.run().history] == [h.START, h.CANCELLED, h.FINISHED]
    assert [ask.path for row in p.run().history for ask in row.asks] == ["0"]


@workflow(name="apply.caller_and_worker")
async def caller_and_worker(ctx: WorkflowContext) -> Any:
    await quick(ctx, 1)
    return await ctx.step(work, 1, 0)


@workflow(name="apply.writing_beside")
async def writing_beside(ctx: WorkflowContext) -> Any:
    try:
        return await ctx.parallel(quick(ctx, 1), ctx.session.state.set("n", 1))
    except asyncio.CancelledError:
        await quick(ctx, 2)
        return await ctx.step(work, 7, 0)


def test_a_cancel_in_the_middle_of_a_call_and_a_session_write_leaves_the_session_free() -> None:
    p = Partition(writing_beside, one)
    p.request(writing_beside, "s.one", "s")
    p.apply(CancelRequested("s.one", "cancel", False))
    p.interrupt()
    p.checkpoint()
    p.crash()  # while the clean-up calls a function in place: neither turn counts yet
    p.request(one, "s.two", "s")
    p.finish_calls()
    assert p.state.session("s").lock is None
    p.succeed("0", ["worked", 1], "s.two")
    p.end("s.two")
    p.succeed("1", ["worked", 7], "s.one")
    p.end("s.one")
    assert p.run("s.one").status == p.run("s.two").status == "completed"
    drop_activation(p.run("s.one"))


@workflow(name="apply.emitter")
async def emitter(ctx: WorkflowContext) -> Any:
    await quick(ctx, 1)
    await ctx.emit("topic", 1)
    return await ctx.step(work, 1, 0)


def test_what_was_delivered_before_a_call_is_made_again_resolves_its_entry_where_it_did() -> None:
    """The new owner has not posted the event yet when it reads that it was delivered."""
    p = Partition(emitter)
    p.request(emitter)
    p.finish_calls()
    p.apply(Delivered([e.id for e in p.asked(Send)], p.state.claim))
    p.succeed("1", ["worked", 1])
    before = p.run().history[-2:]
    p.crash()
    p.finish_calls()
    assert p.run().history[-2:] == before
    assert p.run().ending
    assert not p.state.outbox


def test_what_was_delivered_to_a_parent_before_its_child_s_call_is_made_again_is_not_sent_again() -> None:
    p = Partition(caller)
    p.apply(asked_by_parent("parent/0")._replace(workflow="apply.caller"))
    p.finish_calls()
    p.end("child")
    p.apply(Delivered([e.id for e in p.asked(Send)], p.state.claim))
    assert not p.state.outbox
    p.crash()
    p.finish_calls()
    assert p.run("child").status == "completed"
    assert not p.state.outbox


# ------------------------------------------------------------------ session writes


@workflow(name="apply.writer")
async def writer(ctx: WorkflowContext) -> int:
    await quick(ctx, 1)
    await ctx.session.state.update("n", lambda n: n + 1, 0)
    await quick(ctx, 2)
    return await ctx.session.state.update("n", lambda n: n + 1, 0)


def written(p: Partition) -> StateWritten:
    return [e.record for e in p.asked(Append) if isinstance(e.record, StateWritten)][-1]


def test_a_write_that_took_effect_is_not_asked_again_though_its_run_waits_for_a_call() -> None:
    p = Partition(writer)
    p.request(writer)
    run = p.run()
    p.finish_calls()
    write = written(p)
    drop_activation(run)  # so that telling the run of its write begins with its calls
    p.apply(write)
    p.checkpoint()
    p.crash()
    assert not [e for e in p.asked(Append) if isinstance(e.record, StateWritten)]
    p.finish_calls()
    p.apply(written(p))
    p.end()
    assert from_json(p.run().output or b"") == 2


def test_a_write_that_builds_on_something_else_is_void_and_asked_again() -> None:
    p = Partition(counting)
    p.request(counting)
    p.succeed("0", ["worked", 1])
    write = written(p)
    p.apply(write._replace(base=17))
    assert p.state.session("run").state == {}
    assert written(p) == write
    p.apply(written(p), written(p))
    assert p.state.session("run").state == {"n": b"1"}


def test_a_timer_that_fires_early_by_the_clock_of_the_log_is_asked_again() -> None:
    p = Partition(busy)
    p.request(busy)
    early = TimerFired("run", "2", p.state.claim)
    p.apply(written(p))
    assert [e.path for e in p.apply(early) if isinstance(e, SetTimer)] == ["2"]
    p.clock += 60_000
    p.apply(early)
    assert "2" not in p.run().pending


def test_records_of_an_owner_that_was_superseded_count_for_nothing() -> None:
    p = Partition(one)
    p.request(one)
    stale = StepSucceeded("run", "0", 0, b'["worked", 1]', p.state.claim)
    p.apply(OwnerClaimed("other", "1"), stale)
    assert not p.run().ending
    p.apply(stale._replace(claim=None))  # from a pool, which claims nothing
    assert p.run().ending


def test_a_write_that_waited_behind_a_call_takes_effect_where_it_stands_in_the_log() -> None:
    p = Partition(writer)
    p.request(writer)
    p.finish_calls()
    write = written(p)
    p.apply(write)
    base = p.state.session("run").base
    p.crash()  # nothing but the journal: the write is read while the first call is not yet made again
    p.finish_calls()
    assert p.state.session("run").base == base
    p.apply(written(p))
    p.end()
    assert from_json(p.run().output or b"") == 2


# ------------------------------------------------------------------ parked runs


def test_records_of_a_parked_run_stand_behind_the_turn_that_is_open_when_it_goes_on() -> None:
    p = Partition(caller, one)
    p.request(one, "s.parked", "s")
    del p.code.workflows["apply.one"]
    drop_activation(p.run("s.parked"))
    p.succeed("0", ["worked", 1], "s.parked")
    assert p.run("s.parked").status == "paused"
    p.request(caller, "s.calls", "s")
    p.code.workflows["apply.one"] = one
    p.apply(OwnerClaimed("other", "2"))
    p.finish_calls()
    p.end("s.parked")
    p.end("s.calls")
    assert p.run("s.parked").status == p.run("s.calls").status == "completed"


# ------------------------------------------------------------------ children, retries, replies


@workflow(name="apply.guardian")
async def guardian(ctx: WorkflowContext) -> Any:
    handle = await ctx.start(child.options(detached=True), [["sleep", 1]])
    try:
        return await handle.result()
    finally:
        await handle.cancel()


def test_a_run_whose_clean_up_cancels_a_child_ends() -> None:
    p = Partition(guardian, child)
    p.request(guardian)
    p.apply(CancelRequested("run", "cancel", False))
    p.end()
    assert p.run().status == "cancelled"
    assert any(e.id.startswith("tell:") for e in p.asked(Send))


@workflow(name="apply.hasty", retries=1)
async def hasty(ctx: WorkflowContext) -> Any:
    step = asyncio.create_task(ctx.step(work, 5, 0))  # type: ignore[arg-type]
    await asyncio.sleep(0.5)
    if ctx.attempt == 0:
        raise ValueError("too soon")
    return await step


def test_a_step_left_running_by_a_failed_attempt_is_abandoned() -> None:
    p = Partition(hasty)
    p.request(hasty)
    p.apply(TimerFired("run", p.asked(SetTimer)[0].path, p.state.claim))
    p.end()
    assert [e.path for e in p.asked(Abandon)] == ["0"]


def test_a_reply_resolves_nothing_but_what_asks_for_replies() -> None:
    p = Partition(one)
    p.request(one)
    p.apply(Replied("run", "0", b'"not a result"'))
    assert not p.run().ending
    p.apply(StepSucceeded("run", "0", 0, b'["worked", 1]', p.state.claim))
    assert p.run().ending


# ------------------------------------------------------------------ what a failed run keeps


@workflow(name="apply.resilient", retries=1)
async def resilient(ctx: WorkflowContext) -> list[Any]:
    with contextlib.suppress(ValueError):
        await ctx.step(work, 1, 9)
    charged = await ctx.step(work, 2, 0)
    count = await ctx.user.state.update("n", lambda n: n + 1, 0)
    answer = await ctx.wait_for_user("well?")
    if ctx.attempt == 0:
        raise RuntimeError("once more")
    return [charged, count, answer]


def fail_for_good(p: Partition) -> None:
    attempt = p.run().pending["0"].attempt
    p.apply(StepFailed("run", "0", attempt, "ValueError", "no", "", None, p.state.claim))


def test_what_was_done_is_kept_by_the_next_attempt_though_it_comes_after_what_failed() -> None:
    p = Partition(resilient)
    p.request(resilient)
    fail_for_good(p)
    p.succeed("1", ["worked", 2])
    p.apply(Replied("run", "2/0", b'{"version":0,"state":{}}'))
    p.apply(Replied("run", "2/1", b'{"applied":true,"version":1,"state":{"n":1}}'))
    p.apply(UserResponded("run", "answer", None, b'"fine"', "me"))
    p.apply(Delivered([e.id for e in p.asked(Send)], p.state.claim))
    p.end()
    assert [*p.run().pending] == ["0"]
    p.checkpoint()
    p.crash()
    fail_for_good(p)
    assert not [e for e in p.asked(Execute) if e.path != "0"]
    assert not p.asked(Send)
    assert p.run().ending, "all else was kept"
    p.end()
    assert from_json(p.run().output or b"") == [["worked", 2], 1, "fine"]
    seqs = [event.seq for row in p.run().history for event in h.public_events(row)]
    assert seqs == list(range(1, len(seqs) + 1))


def last_sent(p: Partition, kind: type[Any]) -> Any:
    sent = [decode(p.state.outbox[e.id].value) for e in p.asked(Send)]
    return [record for record in sent if isinstance(record, kind)][-1]


@workflow(name="apply.recounting", retries=1)
async def recounting(ctx: WorkflowContext) -> Any:
    if ctx.attempt:
        return await ctx.user.state.update("n", lambda n: n + 10, 0)
    await ctx.user.state.update("n", lambda n: n + 1, 0)
    raise RuntimeError("once more")


def test_another_write_of_the_next_attempt_is_not_answered_with_the_reply_to_the_first() -> None:
    p = Partition(recounting)
    p.request(recounting)
    for _ in range(2):
        while not p.run().ending:
            p.apply(last_sent(p, UserStateAsked))
            p.apply(last_sent(p, Replied))
        p.end()
    assert p.state.user("run").state == {"n": b"11"}
    assert p.run().output == b"11"


def test_a_child_that_is_asked_for_again_tells_its_parent_again_whatever_is_still_on_its_way() -> None:
    """The first report of the child is delivered after the second is asked for: that must not take the second away."""
    p = Partition(one)
    p.request(one, "child")
    p.succeed("0", 1, "child")
    p.end("child")
    for _ in range(2):
        p.apply(
            RunRequested("child", "again", "apply.one", b"{}", None, None, b"{}", "parent", "0", {}, None),
        )
    reports = [e.id for e in p.asked(Send) if e.id.startswith("done:")]
    assert len({*reports}) == 2
    p.apply(Delivered(reports[:1], p.state.claim))
    assert reports[1] in p.state.outbox


def asked_by_parent(command_id: str) -> RunRequested:
    return RunRequested("child", command_id, "apply.one", b"{}", None, None, b"{}", "parent", "0", {}, None)


def reports(p: Partition) -> list[ChildFinished]:
    return [r for row in p.state.outbox.values() if isinstance(r := decode(row.value), ChildFinished)]


def test_a_child_that_failed_goes_on_when_the_next_attempt_of_its_parent_asks_for_it() -> None:
    p = Partition(one)
    p.apply(asked_by_parent("parent/0"))
    p.apply(StepFailed("child", "0", 0, "ValueError", "no", "", None, p.state.claim))
    p.end("child")
    p.apply(asked_by_parent("parent/0#1"))
    assert p.run("child").status == "running"
    p.apply(asked_by_parent("parent/0#1"))  # the same request once more changes nothing
    p.succeed("0", ["worked", 1], "child")
    p.end("child")
    assert [(r.attempt, r.status) for r in reports(p)] == [(0, "failed"), (1, "completed")]


def test_a_child_with_an_id_that_goes_on_for_another_parent_s_retry_tells_that_parent_too() -> None:
    p = Partition(one)
    p.apply(asked_by_parent("parent/0"))
    p.apply(StepFailed("child", "0", 0, "ValueError", "no", "", None, p.state.claim))
    p.end("child")
    p.apply(asked_by_parent("other/3#1")._replace(parent_run_id="other", parent_path="3"))
    p.succeed("0", ["worked", 1], "child")
    p.end("child")
    told = [(r.run_id, r.path, r.attempt, r.status) for r in reports(p)]
    assert told == [("parent", "0", 0, "failed"), ("parent", "0", 0, "completed"), ("other", "3", 1, "completed")]


def test_a_child_that_was_cancelled_before_it_came_starts_when_the_next_attempt_of_its_parent_asks_for_it() -> None:
    p = Partition(one)
    p.apply(CancelRequested("child", "parent/0:cancel", False), asked_by_parent("parent/0"))
    assert p.run("child").status == "cancelled"
    p.apply(asked_by_parent("parent/0#1"))
    p.succeed("0", ["worked", 1], "child")
    p.end("child")
    assert [(r.attempt, r.status) for r in reports(p)] == [(0, "cancelled"), (1, "completed")]


@workflow(name="apply.calling", retries=1)
async def calling(ctx: WorkflowContext) -> Any:
    return await ctx.call(one)


def test_how_a_child_ended_for_an_earlier_attempt_of_its_parent_is_not_told_to_the_next() -> None:
    p = Partition(calling)
    p.request(calling)
    failed = ChildFinished("run", "0", 0, "child", "failed", None, "ValueError", "no", "")
    p.apply(failed)
    p.end()
    p.apply(failed)
    assert not p.run().ending
    p.apply(failed._replace(status="completed", output=b"1"))
    p.end()
    assert p.run().output == b"1"


def test_an_end_that_was_written_twice_does_not_end_the_attempt_after_it() -> None:
    p = Partition(one)
    p.request(one)
    p.apply(StepFailed("run", "0", 0, "ValueError", "no", "", None, p.state.claim))
    p.end()
    p.apply(RetryRequested("run", "retry"))
    p.end()  # its first copy was thought to be lost
    assert p.run().status == "running"
    p.succeed("0", ["worked", 1])
    p.end()
    assert p.run().status == "completed"


# ------------------------------------------------------------------ other code in charge of a tail


@workflow(name="apply.counting")
async def counting(ctx: WorkflowContext) -> int:
    await ctx.step(work, 1, 0)
    return await ctx.session.state.update("n", lambda n: n + 1, 0)


def test_a_write_of_a_run_that_todays_code_does_not_fit_counts_for_the_others_of_its_session() -> None:
    p = Partition(counting)
    p.request(counting, "s.one", "s")
    p.request(counting, "s.two", "s")
    p.succeed("0", ["worked", 1], "s.one")
    p.apply(written(p))
    p.end("s.one")
    p.succeed("0", ["worked", 1], "s.two")
    p.apply(written(p))
    base = p.state.session("s").base
    del p.code.workflows["apply.counting"]
    p.crash()
    assert p.run("s.one").status == p.run("s.two").status == "paused"
    assert (p.state.session("s").base, p.state.session("s").state) == (base, {"n": b"2"})
    p.code.workflows["apply.counting"] = counting
    p.told = []
    p.apply(OwnerClaimed("other", "2"))
    p.end("s.two")
    assert p.run("s.one").status == p.run("s.two").status == "completed"
    assert p.state.session("s").state == {"n": b"2"}


# ------------------------------------------------------------------ commands to parked runs


@workflow(name="apply.asking")
async def asking(ctx: WorkflowContext) -> Any:
    return await ctx.wait_for_user("well?")


def park_by_losing_the_code(p: Partition) -> None:
    p.code.workflows.clear()
    drop_activation(p.run())


def test_of_two_answers_to_a_parked_run_the_first_counts_and_the_second_is_told_so() -> None:
    p = Partition(asking)
    p.request(asking)
    park_by_losing_the_code(p)
    for name in ("one", "two", "three", "two"):
        p.apply(UserResponded("run", name, None, b'"%b"' % name.encode(), name))
    assert p.run().status == "paused"
    assert [p.verdicts(name) for name in ("one", "three")] == [[None], ["already_answered"]]
    assert p.verdicts("two") == ["already_answered"] * 2
    p.code.workflows[asking.name] = asking
    p.apply(OwnerClaimed("other", "2"))
    p.end()
    assert p.run().output == b'"one"'


def test_a_cancel_that_finds_no_code_to_ask_ends_the_run() -> None:
    p = Partition(asking)
    p.request(asking)
    park_by_losing_the_code(p)
    p.apply(CancelRequested("run", "cancel", False))
    assert p.run().status == "cancelled"
    assert p.verdicts("cancel") == [None]


# ------------------------------------------------------------------ asking again


@workflow(name="apply.busy", timeout=60)
async def busy(ctx: WorkflowContext) -> Any:
    return await ctx.parallel(ctx.session.state.set("n", 1), ctx.step(work, 1, 0), ctx.sleep(5))


def test_everything_a_run_waits_for_is_asked_again_though_it_also_waits_for_a_session_write() -> None:
    p = Partition(busy)
    p.request(busy)
    p.forget()
    p.crash()
    assert [e.path for e in p.asked(Execute)] == ["1"]
    assert sorted(e.path for e in p.asked(SetTimer)) == ["2", "timeout"]
    assert written(p).path == "0"


def test_a_retry_of_a_run_that_needs_none_executes_nothing() -> None:
    p = Partition(one)
    p.request(one)
    assert not [e for e in p.apply(RetryRequested("run", "retry")) if isinstance(e, Execute)]
    assert p.verdicts("retry") == ["not_retriable"]


def test_a_step_that_killed_its_processors_begins_anew_when_its_run_is_retried() -> None:
    p = Partition(one)
    p.request(one)
    p.apply(
        *[StepRestarted("run", "0", 0)] * 3, *[StepIsolated("run", "0", True, 0)] * 2,
        RunParked("run", "0", "poison", "it kills", 0),
    )  # fmt: skip
    p.forget()
    p.apply(RetryRequested("run", "retry"))
    p.forget()
    pending = p.run().pending["0"]
    assert (p.run().status, pending.restarts, pending.isolated) == ("running", 0, 0)
