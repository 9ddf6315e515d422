"""A run that leaves memory has not ended: nothing of its code may run, and nothing may be complained of."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agnt5 import WorkflowContext, function, registry, workflow
from agnt5.replay import eviction
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import Completed, Resolved, RunInfo

ACTED: list[str] = []


class Listening:
    def session_state(self) -> dict[str, bytes]:
        return {}

    def progress(self, fraction: float | None, message: str | None) -> None:
        ACTED.append("progress")

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        ACTED.append(f"log {message} {fields}")


@contextlib.contextmanager
def plain() -> Iterator[None]:
    try:
        yield
    finally:
        ACTED.append("plain context manager")


@contextlib.asynccontextmanager
async def awaited(ctx: WorkflowContext) -> AsyncIterator[None]:
    try:
        yield
    finally:
        ACTED.append("async context manager")
        await ctx.sleep(1)


async def numbers(ctx: WorkflowContext) -> AsyncIterator[int]:
    try:
        yield 1
        await ctx.sleep(1)
        yield 2
    finally:
        ACTED.append("async generator")


def held() -> Iterator[int]:
    try:
        yield 1
    finally:
        ACTED.append("generator")


async def branch(ctx: WorkflowContext) -> None:
    try:
        async for _ in numbers(ctx):
            pass
    except BaseException:
        ACTED.append("branch except")
        raise


async def deep(ctx: WorkflowContext) -> None:
    with plain():
        async with awaited(ctx), contextlib.AsyncExitStack() as stack:
            stack.enter_context(plain())
            await stack.enter_async_context(awaited(ctx))
            stack.callback(ACTED.append, "callback")
            async with asyncio.timeout(100):
                await ctx.parallel(branch(ctx), ctx.step("never started", never()), ctx.sleep(5))


async def never() -> None:
    ACTED.append("never started")


async def everything(ctx: WorkflowContext) -> None:
    generator = held()
    next(generator)
    unused = never()
    failed = asyncio.create_task(fails())
    task = asyncio.create_task(branch(ctx))
    cycle: list[Any] = [task]
    cycle.append(cycle)
    try:
        await deep(ctx)
    except BaseException as error:
        ctx.logger.error("except")
        ACTED.append(f"except {error!r}")
        await ctx.step("cleanup", lambda: None)
    finally:
        ctx.progress(1.0)
        ACTED.append("finally")
        await asyncio.gather(failed, unused)


async def fails() -> None:
    raise ValueError("nobody asks")


async def speaks(ctx: WorkflowContext) -> None:
    try:
        await ctx.sleep(1)
    finally:
        ACTED.append("finally")
        ctx.logger.error("finally")
        ctx.progress(1.0)


def activation(body: Any = everything) -> Activation:
    listening = Listening()
    info = RunInfo("r", body.__name__, "r", "r", 0, {})
    return Activation(workflow(body), info, b"{}", listening, listening)


def test_eviction_runs_nothing_of_the_run_and_warns_of_nothing() -> None:
    assert eviction.MARKS, "the mark works on every CPython that is supported"
    ACTED.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            live = activation()
            assert live.start(1).asks
            live.evict()
            del live
            gc.collect()
    assert ACTED == []
    assert [str(warning.message) for warning in warned] == []


def test_without_the_mark_finally_blocks_would_act(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail; and what is left of a run without the mark is dead: it logs and asks nothing."""
    monkeypatch.setattr(eviction, "MARKS", False)
    ACTED.clear()
    live = activation(speaks)
    live.start(1)
    live.evict()
    del live
    gc.collect()
    assert ACTED == ["finally"]


def test_a_finished_run_leaves_nothing_behind_and_its_tasks_clean_up() -> None:
    cleaned: list[str] = []

    async def left(ctx: WorkflowContext) -> None:
        async def background() -> None:
            try:
                await ctx.sleep(100)
            except asyncio.CancelledError:
                cleaned.append("cancelled")
                with contextlib.suppress(RuntimeError):
                    await ctx.sleep(1)
                await asyncio.sleep(1)
                cleaned.append("too late")

        asyncio.create_task(background())  # noqa: RUF006  # on purpose
        await asyncio.sleep(0)

    listening = Listening()
    live = Activation(workflow(name="left")(left), RunInfo("r", "left", "r", "r", 0, {}), b"{}", listening, None)
    turn = live.start(1)
    assert turn.outcome is not None
    assert turn.asks == []
    assert cleaned == ["cancelled"]
    with pytest.raises(RuntimeError, match="not in memory"):
        live.start(2)


def test_an_evicted_run_is_freed_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(200):
            live = activation()
            live.start(1)
            live.evict()
        del live
        gc.collect()
        assert len(gc.get_objects()) - before < 500
    finally:
        gc.enable()


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "evicted"])
def test_what_a_run_leaves_behind_is_freed_at_once_without_the_garbage_collector(ends: bool) -> None:
    @function
    async def work(x: int) -> int:
        return x

    async def body(ctx: WorkflowContext) -> int:
        return await ctx.step(work, 1) + await ctx.step(work, 2)

    workflow(name="freed")(body)
    gc.collect()
    gc.disable()
    try:
        live: Any = Activation(
            registry.workflow("freed"), RunInfo("run", "freed", "s", "u", 0, {}, None), b"{}", Listening(), None
        )
        live.start(1)
        live.deliver(2, Resolved("0", b"1"))
        if ends:
            assert live.deliver(3, Resolved("1", b"2")).outcome == Completed(b"3")
        else:
            live.evict()
        loop = weakref.ref(live.loop)
        del live
        assert loop() is None
    finally:
        gc.enable()
