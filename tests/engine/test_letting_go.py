"""A partition that is given up is left in good order: all that its owner wrote is in its last checkpoint, and its table
is closed, however the owner was interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5_engine.partition import owner as owner_module
from agnt5_engine.partition import stopping
from agnt5_engine.partition.owner import Owner
from agnt5_engine.partition.table import NoRoomError, Table
from agnt5_engine.ports import NotHere
from agnt5_engine.processor import Processor
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import SignalSent
from agnt5_engine.records.routing import routing_key
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.transport.base import Message
from tests.engine.conftest import Engine


@function
async def charge(ctx: FunctionContext) -> int:
    return 1


@workflow
async def charges(ctx: WorkflowContext) -> int:
    return await ctx.step(charge)


BEGUN, ENOUGH = threading.Event(), threading.Event()


@function
async def does_not_stop(ctx: FunctionContext) -> None:
    BEGUN.set()
    while not ENOUGH.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


@workflow
async def steps_that_do_not_stop(ctx: WorkflowContext) -> None:
    await ctx.step(does_not_stop)


@workflow
async def calls_that_do_not_stop(ctx: WorkflowContext) -> None:
    await does_not_stop(ctx)


def test_a_table_closes_though_somebody_is_in_the_middle_of_its_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "table")
    table._db[b"a"], table._db[b"b"] = b"1", b"2"
    reading = table.scan(b"")
    assert next(reading) == (b"a", b"1")
    table.close()
    Table(tmp_path / "table").close()
    assert list(reading) == []


async def test_an_owner_is_closed_to_its_end_before_the_partition_is_opened_again(engine: Engine) -> None:
    processor, may_end = engine.processor, asyncio.Event()
    owner = processor._owners[0]
    close = owner._checkpointer.close

    async def slow_close() -> None:
        await may_end.wait()
        await close()

    owner._checkpointer.close = slow_close  # type: ignore[method-assign]
    giving_up = asyncio.create_task(processor._give_up(frozenset({0}), save=False))
    await asyncio.sleep(0.05)
    giving_up.cancel()  # as when the membership is lost meanwhile
    await asyncio.wait([giving_up])
    processor._open_soon(0)
    await asyncio.sleep(0.1)
    assert 0 not in processor._owners
    assert processor.trouble() is None, "it waits, and does not fail"
    may_end.set()
    async with asyncio.timeout(10):
        while 0 not in processor.owned():
            await asyncio.sleep(0.01)
    assert processor._owners[0] is not owner


async def test_results_whose_acks_come_while_the_owner_closes_are_in_its_last_checkpoint(engine: Engine) -> None:
    processor = engine.processor
    for _ in range(20):
        await engine.submit("charges")
    owners = list(processor._owners.values())
    for owner in owners:
        close = owner.steps.close

        async def slow_close(owner: Owner = owner, close: Callable[[], Awaitable[None]] = close) -> None:
            await owner.flushed()
            await close()

        owner.steps.close = slow_close  # type: ignore[method-assign]
    assert sum(owner.unacked for owner in owners) > 0
    await processor._give_up(processor.owned(), save=True)
    for owner in owners:
        _, end = await processor.log.bounds(owner.place.journal)
        assert owner.state.applied == end - 1


async def test_a_disk_that_is_full_at_the_last_checkpoint_keeps_no_partition_from_its_next_owner(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, closed = engine.processor, []
    run_id = await engine.submit("charges")
    owner = processor.local.owner(run_id)
    close = owner._checkpointer.close

    async def noted() -> None:
        closed.append(owner)
        await close()

    def full(*_given: object) -> None:
        raise NoRoomError("no room left")

    monkeypatch.setattr(owner._checkpointer, "close", noted)
    monkeypatch.setattr(owner.table, "write", full)
    await processor._give_up(processor.owned(), save=True)
    assert closed == [owner]
    processor._open_soon(owner.partition)
    assert (await asyncio.wait_for(finished(processor, run_id), 10)) == 1


async def finished(processor: Processor, run_id: str) -> object:
    while True:
        with suppress(NotHere):  # given up meanwhile
            return (await processor.finished(run_id)).output
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("workflow_name", ["steps_that_do_not_stop", "calls_that_do_not_stop"])
async def test_code_that_does_not_stop_when_it_is_cancelled_keeps_no_partition_from_its_next_owner(
    engine: Engine, workflow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_SECONDS", 0.5)
    BEGUN.clear()
    ENOUGH.clear()
    processor = engine.processor
    owner = processor.local.owner(await engine.submit(workflow_name))
    assert await asyncio.to_thread(BEGUN.wait, 10)
    try:
        await asyncio.wait_for(processor._give_up(processor.owned(), save=True), 10)
    finally:
        ENOUGH.set()
    assert owner.checkpoints._written == owner.state.applied
    Table(owner.table.path).close()  # nobody else has it open


@workflow
async def waits_after_a_call(ctx: WorkflowContext) -> object:
    return [await charge(ctx), await ctx.wait_for_signal("go")]


def fails_once(what: Callable[..., None], if_: Callable[..., bool]) -> Callable[..., None]:
    failed: list[object] = []

    def call(*given: object) -> None:
        if not failed and if_(*given):
            failed.append(given)
            raise OSError("the disk could not be read")
        what(*given)

    return call


async def test_a_partition_that_failed_while_the_result_of_a_call_was_taken_in_is_taken_over_anew(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "finish_call", fails_once(owner_module.finish_call, lambda *_: True))
    run_id = await engine.submit("waits_after_a_call")
    await asyncio.sleep(0.1)
    await signal_from_elsewhere(engine, run_id)
    assert await asyncio.wait_for(finished(engine.processor, run_id), 10) == [1, "there"]


async def test_a_partition_that_failed_while_a_record_was_applied_is_taken_over_anew_and_the_others_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(state: PartitionState, offset: int, _time: int, record: object) -> bool:
        if not isinstance(record, SignalSent):
            return False
        state.applied = offset
        engine.processor.local.owner(record.run_id).checkpoints._soon.set()  # just when one is due
        return True

    monkeypatch.setattr(owner_module, "apply", fails_once(owner_module.apply, begins))
    run_id = await engine.submit("waits_after_a_call")
    await asyncio.sleep(0.1)
    others = {p: owner for p, owner in engine.processor._owners.items() if p != engine.processor.partition_of(run_id)}
    await signal_from_elsewhere(engine, run_id)
    assert await asyncio.wait_for(finished(engine.processor, run_id), 10) == [1, "there"]
    assert {p: engine.processor._owners[p] for p in others} == others


async def test_a_record_that_was_applied_by_half_while_the_owner_closed_is_in_no_last_checkpoint(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(state: PartitionState, offset: int, _time: int, record: object) -> bool:
        state.applied = offset
        return isinstance(record, SignalSent)

    processor, run_id = engine.processor, await engine.submit("waits_after_a_call")
    await asyncio.sleep(0.1)
    owner = processor.local.owner(run_id)
    monkeypatch.setattr(owner_module, "apply", fails_once(owner_module.apply, begins))
    owner.append(run_id, SignalSent(run_id, "somebody's", "go", b'"there"'))
    await processor._give_up(frozenset({owner.partition}), save=True)
    processor._open_soon(owner.partition)
    assert await asyncio.wait_for(finished(processor, run_id), 10) == [1, "there"]


async def signal_from_elsewhere(engine: Engine, run_id: str) -> None:
    """Written to the journal by somebody else, so that only the log brings it."""
    place = engine.processor._place(engine.processor.partition_of(run_id))
    record = encode(SignalSent(run_id, "somebody's", "go", b'"there"'))
    await engine.processor.log.append(place.journal, [Message(routing_key(run_id).encode(), record)])
