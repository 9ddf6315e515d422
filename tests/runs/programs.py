"""Random workflows: a program is a list of operations, interpreted by real workflow code.

A program is its run's input, so whoever holds it can say what the run must give: `fits` does.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from agnt5 import (
    ChildError,
    FatalError,
    FunctionContext,
    RetryPolicy,
    StepError,
    WorkflowContext,
    function,
    workflow,
)
from agnt5.replay.rebuild import Rebuild

Op = list[Any]
Program = list[Op]

ATTEMPTS = 3


@function(name="model.work", retries=RetryPolicy(max_attempts=ATTEMPTS, initial_interval_ms=20, max_interval_ms=90))
async def work(ctx: FunctionContext, arg: int, fails: int) -> list[Any]:
    if ctx.attempt < fails:
        raise ValueError(f"attempt {ctx.attempt} of {arg} fails")
    return ["worked", arg]


@function(name="model.doomed")
async def doomed(arg: int) -> int:
    raise FatalError(f"{arg} cannot be done")


@function(name="model.quick")
async def quick(arg: int) -> int:
    return arg * 3


class Boom(Exception):
    """What `boom` raises."""


# ------------------------------------------------------------------ the interpreter


async def perform(ctx: WorkflowContext, ops: Program) -> list[Any]:
    return [await _one(ctx, op) for op in ops]


async def _one(ctx: WorkflowContext, op: Op) -> Any:
    match op:
        case ["step", arg, fails]:
            try:
                return await ctx.step(work, arg, fails)
            except ValueError as e:  # what the step raised is what is caught, and a StepError too
                return ["failed", e.attempts if isinstance(e, StepError) else None]
        case ["doomed", arg]:
            try:
                return await ctx.step(doomed, arg)
            except StepError as e:
                return ["failed", e.attempts]
        case ["closure", arg]:

            async def closure() -> int:
                return int(arg) + 1

            return await ctx.step("closure", closure)
        case ["coroutine", arg]:
            return await ctx.step("coroutine", quick.fn(arg))
        case ["sleep", seconds]:
            return await ctx.sleep(seconds)
        case ["asleep", seconds]:
            return await asyncio.sleep(seconds, "slept")
        case ["inc"]:
            seen = await ctx.session.state.get("count", 0)
            await ctx.session.state.set("count", seen + 1)
            return seen + 1
        case ["update"]:
            return await ctx.session.state.update("count", lambda n: n + 1, 0)
        case ["look"]:
            return await ctx.session.state.get("count", 0)
        case ["tally"]:
            await ctx.state.set("tally", await ctx.state.get("tally", 0) + 1)
            return await ctx.state.update("tally", lambda n: n + 1, 0)
        case ["user"]:
            return await ctx.user.state.update("count", lambda n: n + 1, 0)
        case ["user-look"]:
            return await ctx.user.state.get("count", 0)
        case ["signal", name, timeout]:
            try:
                return await ctx.wait_for_signal(name, timeout=timeout)
            except TimeoutError:
                return "late"
        case ["ask", kind, timeout]:
            try:
                return await ctx.wait_for_user("well?", kind, skippable=True, timeout=timeout)
            except TimeoutError:
                return "late"
        case ["parallel", *branches]:
            try:
                return await ctx.parallel(*(perform(ctx, branch) for branch in branches))
            except Boom:
                return "boom"
        case ["steps", *args]:
            return await ctx.parallel(*(ctx.step(work, arg, 0) for arg in args))
        case ["batch", *args]:
            result = await ctx.batch(work, [{"arg": arg, "fails": 0} for arg in args], max_concurrency=2)
            return [item.output for item in result.results]
        case ["all", *branches]:
            told = await ctx.parallel(*(perform(ctx, branch) for branch in branches), return_exceptions=True)
            return ["boom" if isinstance(one, Boom) else one for one in told]
        case ["gather", left, right]:
            named = await ctx.gather(left=perform(ctx, left), right=perform(ctx, right))
            return [named["left"], named["right"]]
        case ["group", *branches]:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(perform(ctx, branch)) for branch in branches]
            except ExceptionGroup as failed:
                if failed.split(Boom)[1] is not None:
                    raise
                return "boom"
            return [task.result() for task in tasks]
        case ["locked", *branches]:
            return await _locked(ctx, branches)
        case ["completed", *args]:
            return [await one for one in asyncio.as_completed([ctx.step(work, arg, 0) for arg in args])]
        case ["shield", seconds, ops]:
            return await _shielded(ctx, seconds, ops)
        case ["map", *args]:
            return await ctx.map(quick, args, max_concurrency=2)
        case ["mixed", *fails]:
            mixed = await ctx.batch(work, [{"arg": 1, "fails": n} for n in fails], max_concurrency=2)
            return [item.status for item in mixed.results]
        case ["note", word]:
            await ctx.session.state.set("note", word)
            seen = await ctx.session.state.to_dict()
            await ctx.session.state.delete("note")
            return [sorted({*seen, *await ctx.session.state.keys()} - {"count"}), "note" in seen]
        case ["user-note", word]:
            await ctx.user.state.set(word, [word])
            seen = await ctx.user.state.get(word)
            await ctx.user.state.delete(word)
            return seen
        case ["patched", name]:
            return ctx.patched(name)
        case ["race", left, right]:
            tasks = [asyncio.create_task(perform(ctx, ops)) for ops in (left, right)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                first = 0 if tasks[0].done() else 1
                return [first, await tasks[first]]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        case ["limit", seconds, ops]:
            try:
                return await asyncio.wait_for(perform(ctx, ops), seconds)
            except TimeoutError:
                return "late"
        case ["within", seconds, ops]:
            try:
                async with asyncio.timeout(seconds):
                    return await perform(ctx, ops)
            except TimeoutError:
                return "late"
        case ["child", kind, ops, options]:
            return await _child(ctx, kind, ops, options)
        case ["emit", topic]:
            return await ctx.emit(topic, {"from": ctx.run_id})
        case ["call", arg]:
            return await quick(ctx, arg)
        case ["calls", *args]:
            return await ctx.parallel(*(quick(ctx, arg) for arg in args))
        case ["boom", attempts]:
            if ctx.attempt < attempts:
                raise Boom(f"attempt {ctx.attempt}")
            return "passed"
        case ["finally", ops, cleanup]:
            try:
                return await perform(ctx, ops)
            finally:
                await perform(ctx, cleanup)
        case ["catch", ops, after]:
            try:
                return await perform(ctx, ops)
            except asyncio.CancelledError:
                return ["caught", await perform(ctx, after)]
        case ["chance"]:
            return [ctx.uuid().hex, ctx.random().randrange(1000), ctx.now().isoformat()]
    raise AssertionError(op)


async def _locked(ctx: WorkflowContext, branches: list[Program]) -> list[Any]:
    """One branch after the other, by a lock, what they give by a queue."""
    lock, queue = asyncio.Lock(), asyncio.Queue[Any]()

    async def one(index: int, ops: Program) -> None:
        async with lock:
            await queue.put([index, await perform(ctx, ops)])

    tasks = [asyncio.create_task(one(i, ops)) for i, ops in enumerate(branches)]
    try:
        return [one for _, one in sorted([await queue.get() for _ in tasks], key=lambda pair: pair[0])]
    finally:
        for task in tasks:
            task.cancel()


async def _shielded(ctx: WorkflowContext, seconds: float, ops: Program) -> Any:
    task = asyncio.create_task(perform(ctx, ops))
    try:
        return await asyncio.wait_for(asyncio.shield(task), seconds)
    except TimeoutError:
        return await task
    finally:
        task.cancel()


async def _child(ctx: WorkflowContext, kind: str, ops: Program, options: dict[str, Any]) -> Any:
    wf = child.options(**options)
    try:
        match kind:
            case "call":
                return await ctx.call(wf, ops)
            case "start":
                handle = await ctx.start(wf, ops)
                between = await ctx.step(work, 1, 0)
                return [between, await handle.result()]
            case "signal":
                handle = await ctx.start(wf, [["signal", "go", None], *ops])
                await handle.signal("go", "from parent")
                return await handle.result()
            case "cancel":
                handle = await ctx.start(wf, [*ops, ["signal", "never", None]])
                await handle.cancel()
                return await handle.result()
            case "leave":
                await ctx.start(wf, ops)
                return "left"
            case "stubborn":
                return await ctx.call(stubborn.options(**options), ops)
            case "limited":
                return await ctx.call(limited.options(**options), ops)
    except ChildError as e:
        return ["child", e.error_type.rpartition(".")[2]]
    raise AssertionError(kind)


@workflow(name="model.plain")
async def plain(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    return await perform(ctx, ops)


@workflow(name="model.child")
async def child(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    return await perform(ctx, ops)


@workflow(name="model.stubborn", retries=2)
async def stubborn(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    return await perform(ctx, ops)


@workflow(name="model.limited", timeout=0.7)
async def limited(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    return await perform(ctx, ops)


@workflow(name="model.guilty")
async def guilty(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    """Fits whatever code is in charge, but for `unfit`."""
    return await perform(ctx, ops)


@workflow(name="model.unfit")
async def unfit(ctx: WorkflowContext, ops: list[Any]) -> list[Any]:
    """Stands in for `guilty` in code that does not fit: it asks for something else wherever there is a history."""
    if isinstance(ctx._activation._replay, Rebuild):
        await ctx.sleep(1, "unfit")
    return await perform(ctx, ops)


# ------------------------------------------------------------------ making programs


SIMPLE = ("step", "step", "step", "doomed", "closure", "sleep", "asleep", "tally", "steps", "chance")
SESSION = ("inc", "inc", "update", "look")
OTHERS = ("user", "user-look", "signal", "ask", "emit", "batch")
JOINS = ("parallel", "race", "limit", "within", "finally", "catch")
CALLS = ("call", "calls")
NEWER = (
    "all", "gather", "group", "locked", "completed", "shield", "map", "mixed", "note", "user-note", "patched",
    "stubborn", "stubborn", "limited", "named", "named",
)  # fmt: skip
ALL = SIMPLE + SESSION + OTHERS + JOINS + ("child", "child", "coroutine")


def program(r: random.Random, kinds: tuple[str, ...] = ALL, depth: int = 0, most: int = 4) -> Program:
    return [_op(r, kinds, depth) for _ in range(r.randint(1, most if depth == 0 else 2))]


def _op(r: random.Random, kinds: tuple[str, ...], depth: int) -> Op:
    kind = r.choice(kinds)
    if depth >= 2 and kind in (*JOINS, *NEWER, "child"):
        kind = "step"
    arg = r.randrange(1000)

    def inner() -> Program:
        return program(r, kinds, depth + 1)

    seconds = r.choice([0.02, 0.1, 0.3])
    match kind:
        case "step":
            return ["step", arg, r.choice([0, 0, 0, 1, 2, 5])]
        case "doomed" | "closure" | "coroutine" | "call":
            return [kind, arg]
        case "sleep" | "asleep":
            return [kind, seconds]
        case "inc" | "update" | "look" | "tally" | "user" | "user-look" | "chance":
            return [kind]
        case "signal":
            return ["signal", r.choice("ab"), r.choice([None, seconds])]
        case "ask":
            return ["ask", r.choice(["text", "approval"]), r.choice([None, seconds])]
        case "parallel" | "all" | "group" | "locked":
            branches = [inner() for _ in range(r.randint(2, 3))]
            if r.random() < 0.2 and kind != "locked":
                branches[-1].append(["boom", 99])
            return [kind, *branches]
        case "gather":
            return ["gather", inner(), inner()]
        case "shield":
            return ["shield", seconds, inner()]
        case "mixed":
            return ["mixed", *(r.choice([0, 1, 5]) for _ in range(3))]
        case "note" | "user-note" | "patched":
            return [kind, f"w{r.randrange(1000)}"]
        case "stubborn" | "limited":
            ops = inner()
            if kind == "stubborn":
                ops.insert(r.randint(0, len(ops)), ["boom", r.choice([0, 1, 2, 3])])
            return ["child", kind, ops, {"session_id": "s0"} if r.random() < 0.3 else {}]
        case "named":
            n = r.randrange(4)
            return ["child", "call", [["step", n, 0], ["sleep", 0.1], ["step", n, n]], {"id": f"Named-{n}.x"}]
        case "steps" | "batch" | "calls" | "map" | "completed":
            return [kind, *(r.randrange(1000) for _ in range(r.randint(2, 4)))]
        case "race":
            return ["race", inner(), inner()]
        case "limit" | "within":
            return [kind, seconds, inner()]
        case "child":
            options: dict[str, Any] = {}
            if r.random() < 0.3:
                options["session_id"] = f"s{r.randrange(2)}"
            if r.random() < 0.2:
                options["detached"] = True
            return ["child", r.choice(["call", "start", "signal", "cancel", "leave"]), inner(), options]
        case "emit":
            return ["emit", f"topic{r.randrange(2)}"]
        case "finally":
            return ["finally", inner(), [["step", arg, r.randrange(2)]]]
        case "catch":
            return ["catch", inner(), [["step", arg, 0]]]
    raise AssertionError(kind)


# ------------------------------------------------------------------ what must come of them


def flat(ops: Program) -> list[Op]:
    """Every operation of a program, nested ones too, but not those of children."""
    found: list[Op] = []
    for op in ops:
        found.append(op)
        match op:
            case ["parallel" | "all" | "group" | "locked", *branches]:
                inner = [x for branch in branches for x in branch]
            case ["race" | "finally" | "catch" | "gather", left, right]:
                inner = [*left, *right]
            case ["limit" | "within" | "shield", _, some]:
                inner = some
            case _:
                inner = []
        found += flat(inner)
    return found


def has_result(ops: Program, result: Any, told: set[str]) -> bool:
    """Whether a run of `ops` may have given `result`. `told`: things the world has said (payloads, answers)."""
    return (
        isinstance(result, list) and len(ops) == len(result) and all(map(lambda o, r: _fits(o, r, told), ops, result))
    )


def _fits(op: Op, result: Any, told: set[str]) -> bool:
    match op:
        case ["step", arg, fails]:
            return bool(result == (["worked", arg] if fails < ATTEMPTS else ["failed", ATTEMPTS]))
        case ["doomed", _]:
            return bool(result == ["failed", 1])
        case ["closure", arg]:
            return bool(result == arg + 1)
        case ["coroutine" | "call", arg]:
            return bool(result == arg * 3)
        case ["sleep", _] | ["emit", _]:
            return result is None
        case ["asleep", _]:
            return bool(result == "slept")
        case ["inc" | "update" | "user"]:
            return isinstance(result, int) and result >= 1
        case ["look" | "user-look"]:
            return isinstance(result, int) and result >= 0
        case ["tally"]:
            return isinstance(result, int) and result >= 2
        case ["signal", _, timeout]:
            return result in told or (timeout is not None and result == "late")
        case ["ask", _, timeout]:
            return result is None or result in told or (timeout is not None and result == "late")
        case ["parallel" | "group" | "locked", *branches]:
            if branches[-1][-1] == ["boom", 99]:
                return bool(result == "boom")
            return len(branches) == len(result) and all(map(lambda b, r: has_result(b, r, told), branches, result))
        case ["steps" | "batch", *args]:
            return bool(result == [["worked", arg] for arg in args])
        case ["all", *branches]:
            fits = [
                one == "boom" if branch[-1] == ["boom", 99] else has_result(branch, one, told)
                for branch, one in zip(branches, result, strict=True)
            ]
            return all(fits)
        case ["gather", left, right]:
            return has_result(left, result[0], told) and has_result(right, result[1], told)
        case ["completed", *args]:
            return sorted(result) == sorted(["worked", arg] for arg in args)
        case ["shield", _, ops]:
            return has_result(ops, result, told)
        case ["mixed", *fails]:
            return bool(result == ["completed" if n < ATTEMPTS else "failed" for n in fails])
        case ["note", _]:
            return set(result[0]) <= {"note"} and isinstance(result[1], bool)
        case ["user-note", word]:
            return result in ([word], None)
        case ["patched", _]:
            return isinstance(result, bool)
        case ["child", "stubborn", ops, _]:
            booms = [op[1] for op in ops if op[0] == "boom"]
            failed = result == ["child", "Boom"] and bool(booms) and booms[0] > 2
            return failed or has_result(ops, result, told)
        case ["child", "limited", ops, _]:
            return result == ["child", "TimeoutError"] or has_result(ops, result, told)
        case ["calls" | "map", *args]:
            return bool(result == [arg * 3 for arg in args])
        case ["race", left, right]:
            return has_result(right if result[0] else left, result[1], told)
        case ["limit" | "within", _, ops]:
            return result == "late" or has_result(ops, result, told)
        case ["child", "call", ops, options]:  # one that others share may have been cancelled by them
            return ("id" in options and result == ["child", "CancelledError"]) or has_result(ops, result, told)
        case ["child", "start", ops, _]:
            return bool(result[0] == ["worked", 1]) and has_result(ops, result[1], told)
        case ["child", "signal", ops, _]:
            return result[0] in told and has_result(ops, result[1:], told)
        case ["child", "cancel", ops, _]:  # it may have caught it, or been done
            return bool(result == ["child", "CancelledError"]) or has_result(
                [*ops, ["signal", "x", None]], result, told
            )
        case ["child", "leave", *_]:
            return bool(result == "left")
        case ["boom", _]:
            return bool(result == "passed")
        case ["finally", ops, _]:
            return has_result(ops, result, told)
        case ["catch", ops, after]:
            if result[0] == "caught":
                return has_result(after, result[1], told)
            return has_result(ops, result, told)
        case ["chance"]:
            return len(result) == 3
    return False
