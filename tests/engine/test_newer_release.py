"""Releases are mixed for a while: in a rolling deployment, and after one that was taken back."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest

from agnt5 import WorkflowContext, workflow
from agnt5_engine.records import avro
from agnt5_engine.records.avro import HEADER, MAGIC, encode
from agnt5_engine.records.journal import SignalSent
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.records.rows import RunRow
from agnt5_engine.transport.base import Message, TopicPartition
from tests.engine.conftest import Engine

NEWER = MAGIC + b"newer..."  # the header of a schema version that only the newer release has


@workflow
async def waits(ctx: WorkflowContext) -> Any:
    return await ctx.wait_for_signal("paid")


def as_newer(data: bytes) -> bytes:
    return NEWER + data[HEADER:]


def upgrade(monkeypatch: pytest.MonkeyPatch, cls: type[Any]) -> None:
    """From here on this process can read what the newer release writes of this kind."""
    monkeypatch.setitem(avro._VERSIONS, NEWER, next(v for v in avro._VERSIONS.values() if v.cls is cls))


async def told_to_upgrade(engine: Engine) -> None:
    async def told() -> bool:
        return "upgrade this processor" in (engine.processor.trouble() or "")

    await engine.until(told)
    assert engine.processor._stopped, "it does not try again and again"


async def test_a_journal_record_of_a_newer_release_waits_for_a_processor_that_can_read_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await engine.submit("waits")
    key = routing_key(run_id)
    journal = TopicPartition(engine.settings.journal_topic, partition_of(key, engine.settings.partitions))
    record = encode(SignalSent(run_id, "c", "paid", b'"in full"'))
    await engine.processor.log.append(journal, [Message(key.encode(), as_newer(record))])

    await told_to_upgrade(engine)
    assert await engine.processor.dead_letters() == []

    await engine.stop()
    upgrade(monkeypatch, SignalSent)
    await engine.start()
    assert (await engine.processor.finished(run_id)).output == "in full"


async def test_a_partition_whose_rows_a_newer_release_has_written_says_so_and_waits_for_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = avro._ENCODERS[RunRow]
    with monkeypatch.context() as newer:
        newer.setitem(avro._ENCODERS, RunRow, lambda row: as_newer(older(row)))
        upgrade(newer, RunRow)
        run_id = await engine.submit("waits")
        await engine.stop()
    shutil.rmtree(engine.slot.folder / "tables")

    starting = asyncio.create_task(engine.start())
    await told_to_upgrade(engine)
    starting.cancel()
    await engine.stop()

    upgrade(monkeypatch, RunRow)
    await engine.start()
    await engine.processor.signal(run_id, "paid", 1, None)
    assert (await engine.processor.finished(run_id)).output == 1
