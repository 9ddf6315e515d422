"""A failed run goes on from what failed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from hypothesis import HealthCheck, given, settings

from agnt5 import WorkflowContext, function, workflow
from agnt5.errors import error_info
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import (
    Ask,
    Cancelled,
    Completed,
    Event,
    Failed,
    PastEvent,
    Resolved,
    RunInfo,
    TimedOut,
    Turn,
    WriteAsk,
    ask_digest,
    ask_key,
)
from tests.replay.model import LIVE, Model
from tests.replay.test_replay_is_exact import plans, seeds

NOW = 1_700_000_000_000


class Run:
    """Delivers what a test says, and keeps the history."""

    def __init__(self, body: Any, input: bytes = b"{}") -> None:
        self.workflow = workflow(name=f"resumed_{body.__name__}")(body)
        self.input = input
        self.now = NOW
        self.session: dict[str, bytes] = {}
        self.attempt = 0
        self.activation = self.fresh()
        self.history: list[PastEvent] = []
        self.open: dict[str, Ask] = {}
        self.turn = Turn()
        self.took(PastEvent(NOW, None, "", "", 0, (), ()), self.activation.start(NOW))

    def session_state(self) -> dict[str, bytes]:
        return self.session

    def fresh(self) -> Activation:
        info = RunInfo("run", self.workflow.name, "run", "run", self.attempt, {})
        made = Activation(self.workflow, info, self.input, self, None)
        LIVE.append(made)
        return made

    def took(self, past: PastEvent, turn: Turn) -> None:
        self.turn = turn
        self.history.append(past._replace(reads=tuple(turn.reads), marks=tuple(turn.marks)))
        for ask in turn.asks:
            self.open[ask.path] = ask
        for path in turn.withdrawn:
            del self.open[path]

    def tell(self, event: Event) -> None:
        self.now += 10
        if isinstance(event, Cancelled):
            past = PastEvent(self.now, event, "", "", 0, (), ())
        else:
            ask = self.open.pop(event.path)
            past = PastEvent(self.now, event, *ask_key(ask)[1:], ask_digest(ask), (), ())
        self.took(past, self.activation.deliver(self.now, event))

    def resume(self) -> Turn:
        self.attempt += 1
        self.now += 1000
        self.activation = self.fresh()
        self.turn = self.activation.resume_failed(self.now, self.history)
        self.history = list(self.activation.kept)
        self.open = {ask.path: ask for ask in self.turn.asks}
        return self.turn

    def asked(self) -> list[str]:
        return [f"{ask_key(ask).kind} {ask.path}" for ask in self.turn.asks]

    def check_rebuild(self) -> None:
        pending = {path: ask_key(ask) for path, ask in self.open.items()}
        again = self.fresh()
        assert again.rebuild(self.history, pending).asks == []
        again.evict()


def failure(path: str) -> Failed:
    return Failed(path, error_info(ValueError("no"), "resume_work", 3))


@function(name="resume_work")
async def work(x: Any) -> Any:
    return x


def test_results_are_kept_and_only_what_failed_is_asked_again() -> None:
    async def body(ctx: WorkflowContext) -> list[Any]:
        one = await ctx.step(work, 1)
        await ctx.sleep(60)
        both = await ctx.parallel(ctx.step(work, 2), ctx.step(work, 3))
        return [one, *both, ctx.attempt]

    run = Run(body)
    run.tell(Resolved("0", b"1"))
    run.tell(Resolved("1", b"null"))
    run.tell(Resolved("3", b"3"))
    run.tell(failure("2"))
    assert run.turn.outcome is not None
    assert run.resume().outcome is None
    assert run.asked() == ["step 2"]
    assert all(past.time == run.now for past in run.history)
    run.check_rebuild()
    run.tell(Resolved("2", b"2"))
    assert run.turn.outcome == Completed(b"[1,2,3,1]")


def test_a_result_whose_input_is_another_now_is_not_kept() -> None:
    async def body(ctx: WorkflowContext) -> Any:
        first = await ctx.step(work, ctx.attempt)
        return await ctx.step(work, first)

    run = Run(body)
    run.tell(Resolved("0", b"0"))
    run.tell(failure("1"))
    run.resume()
    assert run.asked() == ["step 0"]
    run.tell(Resolved("0", b"0"))
    run.tell(failure("1"))
    run.resume()
    run.tell(Resolved("0", b"5"))
    assert run.asked() == ["step 1"]


def test_a_time_limit_starts_afresh_but_a_slept_sleep_is_not_slept_again() -> None:
    async def body(ctx: WorkflowContext) -> Any:
        await asyncio.sleep(3600)
        await ctx.sleep(3600)
        async with asyncio.timeout(10):
            return await ctx.step(work, 1)

    run = Run(body)
    for path in ("0", "1"):
        run.tell(Resolved(path, b"null"))
    run.tell(Resolved("2", b"null"))  # the time limit
    assert run.turn.outcome is not None
    run.resume()
    assert run.asked() == ["sleep 2", "step 3"]
    assert run.open["2"].due == run.now + 10_000  # type: ignore[union-attr]


def test_failures_that_were_handled_and_waits_that_timed_out_are_tried_again() -> None:
    async def body(ctx: WorkflowContext) -> Any:
        with contextlib.suppress(ValueError):
            await ctx.step(work, 1)
        with contextlib.suppress(TimeoutError):
            await ctx.wait_for_signal("go", timeout=60)
        await ctx.step(work, 3)

    run = Run(body)
    run.tell(failure("0"))
    run.tell(TimedOut("1"))
    run.tell(failure("2"))
    run.resume()
    assert run.asked() == ["step 0"]
    run.tell(Resolved("0", b"1"))
    assert run.asked() == ["signal 1"]


def test_reads_before_the_failure_are_the_old_ones_and_writes_do_not_happen_twice() -> None:
    async def body(ctx: WorkflowContext) -> Any:
        count = await ctx.session.state.get("n", 0)
        await ctx.session.state.set("n", count + 1)
        await ctx.step(work, count)
        await ctx.step(work, "fails")
        return [count, await ctx.session.state.get("n")]

    run = Run(body)
    run.session = {"n": b"1"}
    run.tell(Resolved("1", b"null"))
    run.tell(Resolved("2", b"0"))
    run.tell(failure("3"))
    run.resume()
    assert run.asked() == ["step 3"]
    run.check_rebuild()
    run.session = {"n": b"7"}
    run.tell(Resolved("3", b"0"))
    assert run.turn.outcome == Completed(b"[0,7]")


def test_a_patched_change_does_not_repeat_what_the_old_code_has_done() -> None:
    async def old(ctx: WorkflowContext) -> None:
        await ctx.step(work, "charge the old way")
        await ctx.step(work, "fails")

    async def new(ctx: WorkflowContext) -> list[bool]:
        patched = ctx.patched("new way")
        await ctx.step(work, "charge the new way" if patched else "charge the old way")
        await ctx.step(work, "fails")
        return [patched, ctx.patched("new way"), ctx.patched("other")]

    run = Run(old)
    run.tell(Resolved("0", b"1"))
    run.tell(failure("1"))
    run.workflow = workflow(name="resumed_new")(new)
    run.resume()
    assert run.asked() == ["step 1"]
    run.tell(Resolved("1", b"1"))
    assert run.turn.outcome == Completed(b"[false,false,true]")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans, seeds)
def test_the_new_history_rebuilds_and_the_rest_is_asked(plan: list[Any], seed: int) -> None:
    """From any history, cut anywhere: what is kept and what is asked make a run that can be rebuilt and goes on."""
    plan = [list(each) for each in plan]
    model = Model(plan, seed)
    for _ in range(seed % 7):
        if model.outcome is not None:
            break
        model.next()
    if any(isinstance(ask, WriteAsk) for ask in model.open.values()):
        return  # a run does not fail in the middle of a write
    old = {past.event.path for past in model.history if isinstance(past.event, Resolved)}
    model.activation.evict()
    model.now += 1000
    model.activation = model.fresh()
    turn = model.activation.resume_failed(model.now, model.history)
    while model.activation.calls:
        turn = model.finish_calls()
    model.history = list(model.activation.kept)
    model.open = {ask.path: ask for ask in turn.asks}
    model.outcome = turn.outcome
    kept = {past.event.path for past in model.history if isinstance(past.event, Resolved)}
    assert kept <= old
    model.rebuild = lambda n: True
    model.run()
