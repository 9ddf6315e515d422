"""Finished runs are forgotten after a while, by the log's clock: wholly, and nothing but they."""

from __future__ import annotations

from typing import Any

import pytest

from agnt5 import WorkflowContext, workflow
from agnt5_engine.records.journal import CancelRequested, RetryRequested, RunRequested, StepFailed
from agnt5_engine.runs import checkpoint, table
from tests.runs.bench import Partition
from tests.runs.programs import work
from tests.runs.storage import RETENTION_MS


@workflow(name="retention.one")
async def one(ctx: WorkflowContext, n: int = 0) -> Any:
    await ctx.session.state.set("n", n)
    return await ctx.step(work, n, 0)


@workflow(name="retention.asking", retries=1)
async def asking(ctx: WorkflowContext) -> Any:
    return await ctx.parallel(ctx.wait_for_user("well?"), ctx.step(work, 1, 9))


def complete(p: Partition, run_id: str) -> None:
    p.write(run_id)
    p.succeed("1", ["worked", 0], run_id)
    p.end(run_id)


def rows(p: Partition) -> list[bytes]:
    """The keys of what the table holds, outputs to be sent and the marker aside."""
    return [key for key in p.store.keys if key[:1] not in (table.OUTBOX, table.MARKER)]


@pytest.mark.parametrize("inline", [True, False])
def test_nothing_is_left_of_a_run_that_is_forgotten(inline: bool) -> None:
    p = Partition(one)
    p.request(one)
    if not inline:
        p.checkpoint()
    complete(p, "run")
    p.forget()
    assert rows(p)
    p.clock += RETENTION_MS
    p.apply(CancelRequested("other", "cancel", False))
    p.forget()
    assert [key[:1] for key in rows(p)] == [table.EARLY_CANCEL]
    assert p.state.run("run") is None


def test_a_request_that_comes_again_after_the_run_was_forgotten_starts_it_and_loses_nothing() -> None:
    p = Partition(one)
    p.request(one)
    p.checkpoint()
    complete(p, "run")
    p.forget()
    first = p.run().created_at
    p.clock += RETENTION_MS
    p.request(one)
    p.forget()  # it has to tell the new run from the rows of the old one
    p.crash()
    assert p.run().status == "running"
    assert len(p.run().history) == 1
    complete(p, "run")
    p.checkpoint()
    assert table.created_key(first, b"run") not in p.store.keys
    p.clock += RETENTION_MS
    p.apply(CancelRequested("other", "cancel", False))
    p.forget()
    assert [key[:1] for key in rows(p)] == [table.EARLY_CANCEL]


def test_a_run_that_is_retried_in_the_last_moment_is_not_forgotten() -> None:
    p = Partition(one)
    p.request(one)
    p.write("run")
    p.apply(StepFailed("run", "1", 0, "ValueError", "no", "", None, p.state.claim))
    p.end()
    p.forget()
    p.clock += RETENTION_MS - 1500
    p.apply(RetryRequested("run", "retry"))
    p.apply(CancelRequested("other", "cancel", False))
    p.forget()
    p.crash()
    p.succeed("1", ["worked", 0])
    p.end()
    assert p.run().status == "completed"


def test_the_state_of_a_run_without_session_stays_as_long_as_its_children_do() -> None:
    p = Partition(one)
    p.request(one)
    complete(p, "run")
    p.apply(RunRequested("run.child", "c", "retention.one", b"{}", "run", None, b"{}", "run", "9", {}, None))
    p.forget()
    p.clock += RETENTION_MS
    p.apply(CancelRequested("other", "cancel", False))
    p.forget()
    assert p.state.run("run") is None
    assert p.store.get(table.session_row_key("run")) is not None
    complete(p, "run.child")
    p.forget()
    p.clock += RETENTION_MS
    p.apply(CancelRequested("another", "cancel", False))
    p.forget()
    assert p.store.get(table.session_row_key("run")) is None


def test_a_cancel_of_a_run_that_never_came_is_forgotten() -> None:
    p = Partition(one)
    p.apply(CancelRequested("other", "cancel", False))
    p.forget()
    assert p.store.get(table.early_cancel_key("other")) is not None
    p.clock += RETENTION_MS
    p.apply(CancelRequested("another", "cancel", False))
    p.forget()
    assert p.store.get(table.early_cancel_key("other")) is None
    assert p.store.get(table.early_cancel_key("another")) is not None


def test_a_question_that_is_asked_again_stands_once_among_the_questions() -> None:
    p = Partition(asking)
    p.request(asking)
    p.checkpoint()
    p.apply(StepFailed("run", "1", 0, "ValueError", "no", "", None, p.state.claim))
    p.end()
    p.checkpoint()
    assert len(list(p.store.scan(table.BY_ASKED))) == 1
    p.crash()
    assert [*p.run().pending] == ["0", "1"]


def test_what_still_changes_stays_in_memory() -> None:
    p = Partition(one)
    p.request(one, "a")
    p.checkpoint()
    p.write("a")
    assert checkpoint.forget_clean(p.state, keep=0) == 0
    p.checkpoint()
    assert checkpoint.forget_clean(p.state, keep=0) == 1


@workflow(name="retention.short")
async def short(ctx: WorkflowContext) -> None: ...


def test_runs_are_forgotten_as_fast_as_they_come() -> None:
    p, kept = Partition(short), []
    for n in range(12):
        for i in range(1000):
            p.request(short, f"run{n}x{i}")
            p.end(f"run{n}x{i}")
            p.told.clear()
        p.clock += RETENTION_MS // 4
        p.forget()
        kept.append(sum(key[:1] == table.RUN for key in p.store.keys))
    assert max(kept) <= 6000, kept
