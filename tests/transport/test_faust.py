"""The engine's Faust app inside a loop that is somebody else's: it comes, goes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.transport.drivers import by_url
from yarl import URL

from agnt5_engine.transport import membership as membership_module
from agnt5_engine.transport.base import BadTopicError, Message, RetriableError, TopicPartition
from agnt5_engine.transport.embedded.consumer import FAUST_URL, Transport
from agnt5_engine.transport.embedded.log import EmbeddedLog
from agnt5_engine.transport.embedded.store import StoreError
from agnt5_engine.transport.faust_app import EngineApp, Wiring
from agnt5_engine.transport.membership import FaustMembership
from tests.transport.clusters import Directory, spec
from tests.transport.sinks import NotingSink

JOURNAL = TopicPartition("journal", 0)
EVENTS = TopicPartition("events", 0)


async def _come_and_go(directory: Directory, times: int) -> None:
    log = directory.open()
    await log.create([spec("journal", 4), spec("events")], 1)
    for n in range(times):
        sink = NotingSink("journal")
        sink.membership = membership = directory.join("g", "journal", 4, ["events"], sink)
        await membership.start()
        await log.append(EVENTS, [Message(b"k", b"")])
        await sink.until(lambda: sink.next_offset.get(EVENTS) == n + 1)  # noqa: B023
        assert sink.offsets(EVENTS) == [n]
        membership.acked(EVENTS, n + 1)
        await membership.stop(leave=n % 2 == 0)
    await log.close()


def _surroundings() -> tuple[Any, ...]:
    root = logging.getLogger()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, list(root.handlers), root.level, sys.stdout, sys.stderr, sys.excepthook


async def test_ten_lives_in_one_process_leave_no_task_thread_or_handler_behind(tmp_path: Path) -> None:
    before = _surroundings()
    tasks, threads = asyncio.all_tasks(), threading.active_count()
    await _come_and_go(Directory(tmp_path / "data"), 10)
    assert asyncio.all_tasks() == tasks
    assert threading.active_count() == threads
    assert _surroundings() == before


def test_a_membership_comes_and_goes_inside_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop does not exist on Windows")
    uvloop.run(_come_and_go(Directory(tmp_path / "data"), 3))


async def test_it_makes_no_directory_and_hears_no_variable_of_fausts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in {"BROKER_URL": "kafka://nowhere:1", "APP_DATADIR": "elsewhere", "WEB_PORT": "1"}.items():
        monkeypatch.setenv(variable, value)
    await _come_and_go(Directory(tmp_path / "data"), 1)
    assert os.listdir(tmp_path) == ["data"]


def test_the_transport_is_found_by_fausts_own_entry_point() -> None:
    assert by_url(URL(FAUST_URL)) is Transport


@pytest.fixture
async def log(embedded: EmbeddedLog) -> EmbeddedLog:
    await embedded.create([spec("journal", 2), spec("events")], 1)
    return embedded


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "data")


async def test_a_journal_with_other_partitions_than_set_is_refused(log: EmbeddedLog, directory: Directory) -> None:
    sink = NotingSink("journal")
    membership = directory.join("g", "journal", 8, [], sink)
    with pytest.raises(BadTopicError, match="has 2 partitions, AGNT5_PARTITIONS says 8"):
        await membership.start()
    await membership.stop(leave=True)
    missing = directory.join("g", "nowhere", 8, [], sink)
    with pytest.raises(BadTopicError, match="'nowhere' does not exist"):
        await missing.start()


async def test_a_trigger_topic_made_later_is_consumed_from_its_first_record(
    log: EmbeddedLog, directory: Directory
) -> None:
    sink = NotingSink("journal")
    sink.membership = membership = directory.join("g", "journal", 2, ["events", "later"], sink)
    await membership.start()
    await log.append(JOURNAL, [Message(b"a", b"")])
    await sink.until(lambda: sink.next_offset.get(JOURNAL) == 1)
    await log.create([spec("later")], 1)
    await log.append(TopicPartition("later", 0), [Message(b"first", b"")])
    await sink.until(lambda: bool(sink.offsets(TopicPartition("later", 0))))
    assert sink.assignments[-1] == sink.assignments[0] | {TopicPartition("later", 0)}
    assert sink.revocations == [], "what it has stays with it"
    await membership.stop(leave=True)


async def test_a_membership_the_log_has_failed_comes_back_by_itself(
    log: EmbeddedLog, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership_module, "FIRST_DELAY", 0.01)
    sink = NotingSink("journal")
    membership = directory.join("g", "journal", 2, ["events"], sink)
    assert isinstance(membership, FaustMembership)
    sink.membership = membership
    await membership.start()
    await sink.until(lambda: bool(sink.assignments))
    for n in range(3):
        consumer = membership._consumer
        assert consumer is not None
        await consumer.crash(RetriableError("the broker is away"))
        await sink.until(lambda: len(sink.assignments) == n + 2)  # noqa: B023
        assert len(sink.revocations) == n + 1, "what was lost was taken from the sink first"
        await log.append(EVENTS, [Message(b"k", b"")])
        await sink.until(lambda: sink.next_offset.get(EVENTS) == n + 1)  # noqa: B023
        membership.acked(EVENTS, n + 1)
    assert sink.offsets(EVENTS) == [0, 1, 2]
    await membership.stop(leave=True)


async def test_a_stop_while_a_lost_membership_is_being_ended_waits_for_that_end(
    log: EmbeddedLog, directory: Directory
) -> None:
    saved = asyncio.Event()

    class Saving(NotingSink):
        async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
            await super().revoked(partitions)
            await saved.wait()
            assert self.membership is not None
            self.membership.acked(EVENTS, 1)

    tasks = asyncio.all_tasks()
    sink = Saving("journal")
    membership = directory.join("g", "journal", 2, ["events"], sink)
    assert isinstance(membership, FaustMembership)
    sink.membership = membership
    await membership.start()
    await log.append(EVENTS, [Message(b"k", b"")])
    await sink.until(lambda: sink.next_offset.get(EVENTS) == 1)
    consumer = membership._consumer
    assert consumer is not None
    await consumer.crash(RetriableError("the broker is away"))
    await sink.until(lambda: len(sink.revocations) == 1)
    stopping = asyncio.create_task(membership.stop(leave=True))
    await asyncio.sleep(0.05)
    assert not stopping.done(), "what is being saved is not given up"
    saved.set()
    await stopping
    assert await log.committed("g", EVENTS) == 1
    assert asyncio.all_tasks() - {log.cleaner._task} == tasks


async def test_a_log_that_cannot_be_read_ends_the_membership_and_is_told(
    log: EmbeddedLog, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = NotingSink("journal")
    sink.membership = membership = directory.join("g", "journal", 2, ["events"], sink)
    assert isinstance(membership, FaustMembership)
    await membership.start()
    await sink.until(lambda: bool(sink.assignments))

    def damaged(*arguments: object) -> None:
        raise log.store.damaged("a block is unreadable")

    monkeypatch.setattr(log, "fetch", damaged)
    await log.append(EVENTS, [Message(b"k", b"")])
    with pytest.raises(StoreError, match="a block is unreadable"):
        await membership.failed()
    assert len(sink.revocations) == 1
    await membership.stop(leave=True)


async def test_events_that_retention_took_before_they_were_read_are_passed_over_with_a_warning(
    log: EmbeddedLog, directory: Directory, capsys: pytest.CaptureFixture[str]
) -> None:
    await log.create([spec("short", retention_ms=1500)], 1)
    short = TopicPartition("short", 0)
    sink = NotingSink("journal")
    sink.membership = membership = directory.join("g", "journal", 2, ["short"], sink)
    await membership.start()
    await sink.until(lambda: bool(sink.assignments))
    membership.pause(short)
    await log.append(short, [Message(b"old", b"")] * 5)
    await asyncio.sleep(1.6)
    await log.append(short, [Message(b"new", b"")] * 5)
    await log.cleaner.round()
    assert await log.bounds(short) == (5, 10)
    membership.resume(short)
    await sink.until(lambda: sink.next_offset.get(short) == 10)
    assert sink.offsets(short) == [5, 6, 7, 8, 9]
    shown = capsys.readouterr()
    assert "events_expired" in shown.out + shown.err
    await membership.stop(leave=True)


async def test_topics_that_are_not_the_engines_go_through_faust_as_usual(
    log: EmbeddedLog, directory: Directory
) -> None:
    """An agent beside the sink gets its messages from Faust, acknowledged and committed by Faust."""
    await log.create([spec("orders", 2)], 1)
    sink = NotingSink("journal")
    seen: list[tuple[bytes, bytes]] = []
    enough = asyncio.Event()
    wiring = Wiring(directory.url, "g", "only", "http://x", "journal", 2, frozenset({"events"}), sink, None)

    def new_app() -> EngineApp:
        app = EngineApp(wiring, FAUST_URL)
        orders = app.topic("orders", key_type=bytes, value_type=bytes, value_serializer="raw")

        @app.agent(orders)
        async def take(stream: faust.Stream[bytes]) -> None:
            async for key, value in stream.items():
                seen.append((key, value))
                if len(seen) == 20:
                    enough.set()

        return app

    sink.membership = membership = FaustMembership(new_app, retriable=lambda error: False)
    await membership.start()
    await log.append(EVENTS, [Message(b"e", b"")])
    for n in range(20):
        await log.append(TopicPartition("orders", n % 2), [Message(b"%d" % n, b"x", (("h", b"1"),))])
    await asyncio.wait_for(enough.wait(), 30)
    await sink.until(lambda: sink.next_offset.get(EVENTS) == 1)
    await membership.stop(leave=True)
    assert sorted(seen) == sorted((b"%d" % n, b"x") for n in range(20))
    assert [await log.committed("g", TopicPartition("orders", n)) for n in (0, 1)] == [10, 10]
