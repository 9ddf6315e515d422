"""A driver as small as can be, and a workflow that does whatever a plan says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

from agnt5 import WorkflowContext, function, workflow
from agnt5.errors import error_info
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import (
    Ask,
    Cancelled,
    ChildAsk,
    Event,
    Failed,
    PastEvent,
    Resolved,
    RunInfo,
    SignalAsk,
    SleepAsk,
    StepAsk,
    TimedOut,
    Turn,
    UserAsk,
    UserStateAsk,
    WriteAsk,
    ask_digest,
    ask_key,
)
from agnt5.state import apply_changes

START = 1_700_000_000_000
LIVE: list[Activation] = []
"""Evicted after each test: one that the garbage collector finds would run its `finally:` blocks then."""


@function(name="model_work")
async def work(x: Any) -> Any:
    return x


@function(name="model_in_place", retries=1)
async def in_place(x: Any) -> Any:
    return x


@workflow(name="model_planned")
async def planned(ctx: WorkflowContext, plan: list[Any]) -> list[Any]:
    return await follow(ctx, plan)


async def follow(ctx: WorkflowContext, plan: list[Any]) -> list[Any]:
    """Do what the plan says; the result tells all that the code could see."""
    seen: list[Any] = []
    for what, *rest in plan:
        seen.append([what, await one(ctx, what, rest), ctx.now().isoformat()])
    return seen


async def one(ctx: WorkflowContext, what: str, rest: list[Any]) -> Any:
    match what:
        case "step":
            return await tried(ctx.step(work, rest[0]))
        case "closure":
            return await tried(ctx.step("closure", lambda: 1))
        case "coroutine":
            return await tried(ctx.step("coroutine", work.fn(1)))
        case "in_place":
            return await tried(in_place(ctx, rest[0]))
        case "sleep":
            return await ctx.sleep(rest[0])
        case "asyncio_sleep":
            return await asyncio.sleep(rest[0], "slept")
        case "yield":
            return await asyncio.sleep(0)
        case "get":
            return await ctx.session.state.get(rest[0])
        case "set":
            return await ctx.session.state.set(rest[0], rest[1])
        case "increment":
            value = await ctx.session.state.get("n", 0)
            if rest[0]:
                await asyncio.sleep(0)
            return await ctx.session.state.set("n", value + 1)
        case "update":
            return await ctx.session.state.update("n", lambda n: n + 1, 0)
        case "user_update":
            return await ctx.user.state.update("n", lambda n: n + 1, 0)
        case "state":
            return await ctx.state.update("n", lambda n: n + 1, 0)
        case "signal":
            return await tried(ctx.wait_for_signal(rest[0], timeout=rest[1]))
        case "user":
            return await tried(ctx.wait_for_user("?", timeout=rest[0]))
        case "child":
            return await tried(ctx.call("model_planned", []))
        case "start":
            handle = await ctx.start("model_planned", [])
            return [handle.run_id, await tried(asyncio.wait_for(handle.result(), rest[0]))]
        case "emit":
            return await ctx.emit("topic", rest[0])
        case "random":
            return [ctx.random().random(), str(ctx.uuid())]
        case "patched":
            return ctx.patched(rest[0])
        case "parallel":
            return await tried(ctx.parallel(*(follow(ctx, plan) for plan in rest[0]), return_exceptions=rest[1]))
        case "operations":
            return await tried(ctx.parallel(*(ctx.step(work, x) for x in rest[0]), work(1), ctx.sleep(3)))
        case "asyncio_gather":
            return await tried(asyncio.gather(*(follow(ctx, plan) for plan in rest[0]), ctx.step(work, 0), work(2)))
        case "group":
            async with contextlib.AsyncExitStack() as stack:
                stack.push(lambda *error: True)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(follow(ctx, plan)) for plan in rest[0]]
                return [task.result() for task in tasks]
            return "group failed"
        case "race":
            tasks = [asyncio.create_task(follow(ctx, plan)) for plan in rest[0]]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            return [tasks.index(task) for task in sorted(done, key=tasks.index)]
        case "wait_for":
            return await tried(asyncio.wait_for(follow(ctx, rest[0]), rest[1]))
        case "timeout":
            return await tried(within(ctx, rest[0], rest[1]))
        case "finally":
            try:
                return await follow(ctx, rest[0])
            finally:
                await follow(ctx, rest[1])
        case "raise":
            raise ValueError(rest[0])
        case "batch":
            result = await ctx.batch(work, rest[0], max_concurrency=rest[1], timeout_per_item=rest[2])
            return [[item.status, item.output, item.duration_ms] for item in result.results]
        case "map":
            return await tried(ctx.map(work, rest[0], max_concurrency=rest[1]))
    raise AssertionError(what)


async def within(ctx: WorkflowContext, plan: list[Any], seconds: float) -> Any:
    async with asyncio.timeout(seconds):
        return await follow(ctx, plan)


async def tried(awaitable: Any) -> Any:
    try:
        return plainly(await awaitable)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def plainly(value: Any) -> Any:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return [plainly(item) for item in value] if isinstance(value, list) else value


class Model:
    """One run. What happens next is drawn from `seed` alone, so two models of one seed tell the same story for as long
    as their code asks for the same."""

    def __init__(
        self, plan: list[Any], seed: int, *, rebuild: Callable[[int], bool] = lambda n: False, cancels: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.rebuild = rebuild
        self.cancels = 1 if cancels else 0
        self.info = RunInfo("run", "model_planned", "session", "user", 0, {})
        self.input = json.dumps({"plan": plan}).encode()
        self.now = START
        self.session: dict[str, bytes] = {}
        self.user: tuple[int, dict[str, bytes]] = (0, {})
        self.open: dict[str, Ask] = {}
        self.history: list[PastEvent] = []
        self.turns: list[Any] = []
        self.outcome: Any = None
        self.activation = self.fresh()
        self.settle(None, self.activation.start(self.now))

    def session_state(self) -> dict[str, bytes]:
        return self.session

    def fresh(self) -> Activation:
        made = Activation(planned, self.info, self.input, self, None)
        LIVE.append(made)
        return made

    def run(self, most: int = 400) -> Model:
        for _ in range(most):
            if self.outcome is not None:
                break
            self.next()
        return self

    def next(self) -> None:
        """One event."""
        if self.rebuild(len(self.history)):
            self.activation.evict()
            self.activation = self.fresh()
            turn = self.activation.rebuild(self.history, {path: ask_key(ask) for path, ask in self.open.items()})
            while self.activation.calls:
                turn = self.finish_calls()
            assert not turn.asks
            assert turn.outcome is None
        event = self.choose()
        past = self.past(event)
        if not isinstance(event, Cancelled):
            ask = self.open.pop(event.path)
            self.effect(ask, event)
        self.settle(past, self.activation.deliver(self.now, event))

    def settle(self, past: PastEvent | None, turn: Turn) -> None:
        """Let in-place calls return, in any order, then close the turn; a cancel may come between."""
        past = past or PastEvent(self.now, None, "", "", 0, (), ())
        parts = [turn]
        while self.activation.calls:
            if self.cancels and self.rng.random() < 0.2:
                self.cancels -= 1
                self.close(past, parts)
                stop = Cancelled("cancel")
                past = PastEvent(self.now, stop, "", "", 1 + self.activation.calls_returned, (), ())
                parts = [self.activation.deliver(self.now, stop)]
            else:
                parts.append(self.finish_calls())
        self.close(past, parts)

    def close(self, past: PastEvent, parts: list[Turn]) -> None:
        """The parts of a turn that in-place calls interrupted are one activation."""
        asks = [ask for part in parts for ask in part.asks]
        gone = [path for part in parts for path in part.withdrawn]
        reads = [read for part in parts for read in part.reads]
        marks = [mark for part in parts for mark in part.marks]
        self.outcome = parts[-1].outcome
        self.history.append(past._replace(reads=tuple(reads), marks=tuple(marks)))
        for ask in asks:
            self.open[ask.path] = ask
        for path in gone:
            del self.open[path]
        self.turns.append((self.now, past.event, asks, sorted(gone), reads, marks, self.outcome))

    def finish_calls(self) -> Turn:
        """All that run now, in an order that is not of the seed: any must do."""
        calls = list(self.activation.calls.items())
        random.shuffle(calls)
        whole = Turn()
        for token, call in calls:
            turn = self.activation.finish_call(token, call.args[0])
            whole.asks += turn.asks
            whole.withdrawn += turn.withdrawn
            whole.reads += turn.reads
            whole.marks += turn.marks
            whole.outcome = whole.outcome or turn.outcome
        return whole

    def past(self, event: Event) -> PastEvent:
        if isinstance(event, Cancelled):
            return PastEvent(self.now, event, "", "", 0, (), ())
        ask = self.open[event.path]
        return PastEvent(self.now, event, *ask_key(ask)[1:], ask_digest(ask), (), ())

    def choose(self) -> Event:
        """Any open entry may end next, in any way; a session write first of all."""
        rng = self.rng
        write = next((ask for ask in self.open.values() if isinstance(ask, WriteAsk)), None)
        if write is not None:
            return Resolved(write.path, b"null")
        if self.cancels and rng.random() < 0.1:
            self.cancels -= 1
            return Cancelled("cancel")
        path = rng.choice(sorted(self.open))
        ask = self.open[path]
        self.now += rng.choice((0, 1, 700))
        due = getattr(ask, "due", None)
        luck = rng.random()
        match ask:
            case StepAsk() if luck < 0.2:
                return Failed(path, error_info(ValueError("drawn"), ask.name, 3))
            case StepAsk(input=data) if data:
                return Resolved(path, json.dumps(json.loads(data)["args"][0]).encode())
            case StepAsk():
                return Resolved(path, b"1")
            case SleepAsk():
                self.now = max(self.now, due or 0)
                return Resolved(path, b"null")
            case UserAsk() | SignalAsk() if due is not None and luck < 0.5:
                self.now = max(self.now, due)
                return TimedOut(path)
            case ChildAsk() if luck < 0.3:
                return Failed(path, error_info(ValueError("child"), "model_planned"))
            case ChildAsk():
                return Resolved(path, b"[]")
            case UserStateAsk():
                return Resolved(path, self.user_reply(ask, luck))
            case _:
                return Resolved(path, b'"told"')

    def user_reply(self, ask: UserStateAsk, luck: float) -> bytes:
        version, state = self.user
        if luck < 0.3:  # someone else was faster
            version, state = version + 1, {"n": str(version).encode()}
        applied = ask.op == "write" and ask.version in (None, version)
        if applied:
            version, state = version + 1, dict(state)
            apply_changes(state, ask.changes)
        self.user = version, state
        reply = {"version": version, "state": {key: json.loads(value) for key, value in state.items()}}
        return json.dumps({**reply, "applied": applied} if ask.op == "write" else reply).encode()

    def effect(self, ask: Ask, event: Event) -> None:
        if isinstance(ask, WriteAsk):
            self.session = dict(self.session)
            apply_changes(self.session, ask.changes)
