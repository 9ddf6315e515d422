"""Where a trigger starts reading, and that what is skipped or lost is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agnt5.types import event
from agnt5.workflow import workflow
from agnt5_engine import ingest
from agnt5_engine.settings import Settings
from agnt5_engine.transport import open_log
from agnt5_engine.transport.base import Message, RetriableError, TopicPartition, TopicSpec
from agnt5_engine.transport.embedded.log import EmbeddedLog
from agnt5_engine.transport.membership import FaustMembership
from agnt5_engine.triggers import positions
from agnt5_engine.triggers.positions import place_topic, position, rule

from .engine import processor, runs_of

SOURCE = TopicPartition("orders", 0)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    log = open_log(f"embedded://{tmp_path}/log", None)
    assert isinstance(log, EmbeddedLog)
    await log.create([TopicSpec("orders", 2, "delete", None, 100_000)], 1)
    for n in range(3):
        await log.append(SOURCE, [Message(None, b"%d" % n)])
    yield log
    await log.close()


class Committed:
    """The log, with these offsets committed."""

    def __init__(self, log: EmbeddedLog, offsets: dict[TopicPartition, int]) -> None:
        self._log = log
        self._offsets = offsets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def committed(self, group: str, source: TopicPartition) -> int | None:
        return self._offsets.get(source)


def test_the_rule_is_committed_then_earliest_if_known_then_the_setting() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for start in ("latest", "earliest", moment):
        assert rule(5, topic_known=False, start=start) == "committed"  # type: ignore[arg-type]
        assert rule(None, topic_known=True, start=start) == "earliest"  # type: ignore[arg-type]
    assert rule(None, topic_known=False, start="latest") == "latest"
    assert rule(None, topic_known=False, start="earliest") == "earliest"
    assert rule(None, topic_known=False, start=moment) == "time"


async def test_latest_says_how_many_events_it_skips(log: EmbeddedLog) -> None:
    with capture_logs() as told:
        found = await position(log, "g", SOURCE, partitions=2, start="latest")

    assert found == (3, "latest", 3)
    (line,) = [line for line in told if line["event"] == "trigger.skips"]
    assert (line["events"], line["topic"], line["partition"]) == (3, "orders", 0)


async def test_a_partition_that_appears_later_starts_at_its_beginning(log: EmbeddedLog) -> None:
    known = Committed(log, {TopicPartition("orders", 1): 0})

    assert (await position(known, "g", SOURCE, partitions=2, start="latest")).offset == 0  # type: ignore[arg-type]


async def test_a_time_starts_at_the_first_event_from_then_on(log: EmbeddedLog) -> None:
    before = datetime(2020, 1, 1, tzinfo=UTC)
    after = datetime(2099, 1, 1, tzinfo=UTC)

    assert (await position(log, "g", SOURCE, partitions=2, start=before)).offset == 0
    assert (await position(log, "g", SOURCE, partitions=2, start=after)).offset == 3


async def test_a_topic_made_anew_is_read_from_its_beginning_once_that_is_sure(
    log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "_SETTLES", 0.02)
    monkeypatch.setattr(positions, "_LOOK_AGAIN", 0.01)
    with capture_logs() as told:
        found = await position(Committed(log, {SOURCE: 99}), "g", SOURCE, partitions=2, start="latest")  # type: ignore[arg-type]

    assert found.offset == 0
    assert "trigger.topic_is_shorter" in [line["event"] for line in told]


async def test_a_group_whose_offsets_were_forgotten_starts_at_the_beginning(tmp_path: Path, log: EmbeddedLog) -> None:
    settings = Settings(broker=f"embedded://{tmp_path}/log", partitions=1, trigger_start="latest")
    await log.create([TopicSpec(settings.changelog_topic, 1, "compact", None, 100_000)], 1)
    await log.create([TopicSpec(settings.journal_topic, 1, "delete", None, 100_000)], 1)
    assert (await place_topic(log, settings, "orders", [0]))[SOURCE] == 3

    await log.append(TopicPartition(settings.changelog_topic, 0), [Message(b"m", b"x")])

    assert (await place_topic(log, settings, "orders", [0]))[SOURCE] == 0


async def test_the_first_position_is_pinned_before_anything_is_read(tmp_path: Path) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, n: int) -> int:
        return n

    log = open_log(f"embedded://{tmp_path}", None)
    await log.create([TopicSpec("orders", 1, "delete", None, 100_000)], 1)
    await log.append(SOURCE, [Message(None, b'{"n": 0}')])
    async with processor(tmp_path, trigger_start="latest"):
        pass
    await log.append(SOURCE, [Message(None, b'{"n": 1}')])  # while nothing runs

    async with processor(tmp_path, trigger_start="latest") as engine:
        assert [run.output for run in await runs_of(engine, "order", 1)] == [1]
    await log.close()


async def test_a_topic_whose_beginning_cannot_be_found_keeps_no_other_topic_and_no_run_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asyncio.Event()

    async def slowly(log_: Any, settings: Any, topic: str, *given: Any, **named: Any) -> Any:
        if topic == "stuck":  # its partitions have no leader
            await found.wait()
        return await place_topic(log_, settings, topic, *given, **named)

    monkeypatch.setattr(ingest, "place_topic", slowly)
    monkeypatch.setattr(ingest, "_PLACE_SECONDS", 0.1)
    monkeypatch.setattr(ingest, "_SETTLE_SECONDS", 0.1)

    @workflow(triggers=[event("stuck")])
    async def slow(ctx: Any, n: int) -> int:
        return n

    @workflow(triggers=[event("orders")])
    async def quick(ctx: Any, n: int) -> int:
        return n

    async with processor(tmp_path, trigger_start="earliest") as engine:
        for topic in ("stuck", "orders"):
            await engine.publish(topic, b'{"n": 1}', None, ())
        assert [run.output for run in await runs_of(engine, "quick", 1)] == [1]
        sources = frozenset(engine.ingest._placed)
        for _ in range(2):  # the group is rearranged
            await engine.ingest.revoked(frozenset(source for source in sources if source.topic == "stuck"))
            await engine.ingest.assigned(sources)
        assert (await engine.runs(workflow="slow")).items == []
        found.set()
        assert [run.output for run in await runs_of(engine, "slow", 1)] == [1]
        async with asyncio.timeout(10):  # the topic's other partition
            while engine.ingest._placing:
                await asyncio.sleep(0.01)


OTHER = TopicPartition("orders", 1)


async def test_one_member_decides_where_a_new_topic_begins_and_the_others_begin_where_it_said(
    tmp_path: Path, log: EmbeddedLog
) -> None:
    settings = Settings(broker=f"embedded://{tmp_path}/log", partitions=1, trigger_start="latest")
    await log.create([TopicSpec(settings.changelog_topic, 1, "compact", None, 100_000)], 1)
    pinned: dict[TopicPartition, int] = {}
    group: Any = Committed(log, pinned)
    slower = asyncio.create_task(place_topic(group, settings, "orders", [1]))
    await asyncio.sleep(0.05)
    decided = await place_topic(group, settings, "orders", [0])
    for source in (SOURCE, OTHER):
        await log.append(source, [Message(None, b"as the decision is pinned")])
    pinned.update(decided)

    assert decided == {SOURCE: 3, OTHER: 0}
    assert await slower == {OTHER: 0}


async def test_where_a_new_topic_begins_is_pinned_before_any_of_it_is_read_even_if_that_fails_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def pin(_: Any, positions: dict[TopicPartition, int]) -> None:
        tries.append(dict(positions))
        if len(tries) == 1:
            raise RetriableError("the group is being rearranged")

    monkeypatch.setattr(FaustMembership, "pin", pin)
    async with processor(tmp_path, trigger_start="latest") as engine:
        await engine.log.create([TopicSpec("orders", 2, "delete", None, 100_000)], 1)
        await engine.log.append(SOURCE, [Message(None, b"{}")])
        await ingest.Ingest(engine).assigned(frozenset({SOURCE}))

    assert tries == [{SOURCE: 1, OTHER: 0}] * 2


async def test_a_partition_without_a_leader_keeps_no_other_of_its_topic_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, n: int) -> int:
        return n

    async with processor(tmp_path, trigger_start="earliest"):
        pass  # begins both partitions
    bounds, found = EmbeddedLog.bounds, asyncio.Event()

    async def led(log: EmbeddedLog, source: TopicPartition) -> tuple[int, int]:
        if source == OTHER:
            await found.wait()
        return await bounds(log, source)

    monkeypatch.setattr(EmbeddedLog, "bounds", led)
    monkeypatch.setattr(ingest, "_PLACE_SECONDS", 0.1)
    async with processor(tmp_path, trigger_start="earliest") as engine:
        await engine.log.append(OTHER, [Message(None, b'{"n": 1}')])
        await engine.log.append(SOURCE, [Message(None, b'{"n": 0}')])
        assert [run.output for run in await runs_of(engine, "order", 1)] == [0]
        found.set()
        assert [run.output for run in await runs_of(engine, "order", 2)] == [0, 1]
