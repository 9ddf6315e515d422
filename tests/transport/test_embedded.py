"""What the embedded log promises beyond any log: group commit, restarts, retention and compaction."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from agnt5_engine.transport.base import FencedError, Message, OffsetGoneError, Record, TopicPartition
from agnt5_engine.transport.embedded import cleaning
from agnt5_engine.transport.embedded.checkpoint import EmbeddedCheckpointer
from agnt5_engine.transport.embedded.log import EmbeddedLog
from tests.transport.clusters import Directory, everything, made, spec


class Syncs:
    """The store's syncs, counted and held back."""

    def __init__(self, log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self._sync = log.store.sync
        monkeypatch.setattr(log.store, "sync", self._held)

    def _held(self) -> None:
        self.count += 1
        self.waiting.set()
        self.gate.wait()
        self._sync()


async def test_nothing_is_acknowledged_or_readable_before_it_is_synced(
    embedded: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await made(embedded, "journal")
    syncs = Syncs(embedded, monkeypatch)
    syncs.gate.clear()
    append = asyncio.create_task(embedded.append(target, [Message(b"a", b"")]))
    checkpointer = embedded.checkpointer("id", "g", target)
    opening = asyncio.create_task(checkpointer.open())
    await asyncio.to_thread(syncs.waiting.wait)
    await asyncio.sleep(0.02)
    assert not append.done()
    assert not opening.done()
    assert await embedded.bounds(target) == (0, 0)
    syncs.gate.set()
    assert (await append).offset == 0
    await opening
    assert await embedded.bounds(target) == (0, 1)


async def test_all_that_comes_during_one_sync_shares_the_next(
    embedded: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = (await made(embedded, "journal", 4)).topic
    syncs = Syncs(embedded, monkeypatch)
    syncs.gate.clear()
    first = asyncio.create_task(embedded.append(TopicPartition(topic, 0), [Message(b"first", b"")]))
    await asyncio.to_thread(syncs.waiting.wait)
    rest = [
        asyncio.create_task(embedded.append(TopicPartition(topic, n % 4), [Message(b"%d" % n, b"")]))
        for n in range(1000)
    ]
    await asyncio.sleep(0)
    syncs.gate.set()
    await asyncio.gather(first, *rest)
    assert syncs.count == 2


async def test_a_caller_that_gives_up_leaves_the_rest_of_the_group_whole(embedded: EmbeddedLog) -> None:
    target = await made(embedded, "journal")
    tasks = [asyncio.create_task(embedded.append(target, [Message(b"%d" % n, b"")])) for n in range(10)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for n, ack in enumerate(done):
        if n != 4:
            assert not isinstance(ack, BaseException)
            record = (await everything(embedded, target))[ack.offset]
            assert record.key == b"%d" % n


async def test_a_list_that_the_caller_goes_on_with_does_not_change_what_was_appended(embedded: EmbeddedLog) -> None:
    target = await made(embedded, "journal")
    partition = embedded.topics_by_name.partition(target)
    partition.listen(lambda: None)  # so that the latest batches stay in memory
    messages = [Message(b"a", b"1")]
    append = asyncio.create_task(embedded.append(target, messages))
    await asyncio.sleep(0)
    messages.clear()
    await append
    messages.append(Message(b"b", b"2"))
    assert [record.key for record in await everything(embedded, target)] == [b"a"]


async def test_what_is_still_in_memory_reads_like_what_is_stored(embedded: EmbeddedLog) -> None:
    target = await made(embedded, "journal")
    partition = embedded.topics_by_name.partition(target)
    await embedded.append(target, [Message(b"before", b"")] * 5)
    partition.listen(lambda: None)
    for n in range(20):
        await embedded.append(target, [Message(b"%d.%d" % (n, k), b"v", (("h", b"1"),)) for k in range(n % 5 + 1)])
    _, end = await embedded.bounds(target)

    def cut(start: int, stop: int) -> list[Record]:
        records: list[Record] = []
        while start < stop:
            batch = embedded.fetch(partition, start, stop, records=7)
            records += batch.records
            start = batch.next_offset
        return records

    ranges = [(start, stop) for start in range(end) for stop in range(start + 1, end + 1, 3)]
    in_memory = [cut(*range_) for range_ in ranges]
    partition.forget()
    assert in_memory == [cut(*range_) for range_ in ranges]


async def test_a_reader_at_the_end_is_woken_by_the_next_append(embedded: EmbeddedLog) -> None:
    target = await made(embedded, "journal")
    found: list[Record] = []

    async def follow() -> None:
        async for batch in embedded.read(target, 0, 5):
            found.extend(batch.records)

    reader = asyncio.create_task(follow())
    for n in range(5):
        await embedded.append(target, [Message(b"%d" % n, b"")])
    await reader
    assert [record.key for record in found] == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_logs_time_never_goes_back_even_when_the_clock_does(
    embedded: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await made(embedded, "journal")
    await embedded.append(target, [Message(b"a", b"")])
    now = time.time_ns()
    monkeypatch.setattr("agnt5_engine.transport.embedded.group_commit.time.time_ns", lambda: now - 3_600_000_000_000)
    await embedded.append(target, [Message(b"b", b"")])
    await embedded.close()
    again = Directory(tmp_path / "data").open()
    await again.append(target, [Message(b"c", b"")])
    times = [record.time for record in await everything(again, target)]
    assert times == sorted(times)
    await again.close()


async def test_a_restart_finds_everything_as_it_was(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    log = directory.open()
    assert isinstance(log, EmbeddedLog)
    target = await made(log, "journal", 2)
    changelog = await made(log, "changelog", cleanup="compact")
    await log.create([spec("events", 3, retention_ms=5_000, max_message_bytes=77)], 1)
    await log.append(target, [Message(b"%d" % n, b"v", (("h", b"1"),)) for n in range(1500)])
    checkpointer = log.checkpointer("id", "g", changelog)
    await checkpointer.open()
    await checkpointer.write([Message(b"row", b"1")], target, 1234)
    await log.commit_offsets("g", {TopicPartition("events", 2): 5})
    before = (await everything(log, target), await log.topics(), await log.cluster_id())
    await log.close()
    log = directory.open()
    assert (await everything(log, target), await log.topics(), await log.cluster_id()) == before
    assert await log.committed("g", target) == 1234
    assert await log.committed("g", TopicPartition("events", 2)) == 5
    assert (await log.append(target, [Message(b"next", b"")])).offset == 1500
    late = log.checkpointer("id", "g", changelog)
    await late.open()
    await late.write([Message(b"row", b"2")], target, 1300)
    early = log.checkpointer("id", "g", changelog)
    assert isinstance(early, EmbeddedCheckpointer)
    early._epoch = 1  # as the owner before the restart had it
    with pytest.raises(FencedError):
        await early.write([Message(b"row", b"0")], target, 1)
    await log.close()


# -- retention


async def test_retention_drops_what_is_too_old_and_the_start_moves_up(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    log = directory.open()
    assert isinstance(log, EmbeddedLog)
    await log.create([spec("events", retention_ms=1500), spec("kept")], 1)
    events, kept = TopicPartition("events", 0), TopicPartition("kept", 0)
    for _ in range(10):
        await log.append(events, [Message(None, b"old")] * 10)
        await log.append(kept, [Message(None, b"old")] * 10)
    await asyncio.sleep(1.6)
    await log.append(events, [Message(None, b"new")] * 10)
    await log.cleaner.round()
    assert await log.bounds(events) == (100, 110)
    assert await log.bounds(kept) == (0, 100)
    assert {record.value for record in await everything(log, events)} == {b"new"}
    with pytest.raises(OffsetGoneError, match="offsets 100 to 110, not 99"):
        await anext(aiter(log.read(events, 99, 110)))
    await asyncio.sleep(1.6)
    await log.cleaner.round()
    assert await log.bounds(events) == (110, 110)
    await log.close()
    log = directory.open()
    assert await log.bounds(events) == (110, 110)
    assert (await log.append(events, [Message(None, b"again")])).offset == 110
    assert [record.offset for record in await everything(log, events)] == [110]
    await log.close()


# -- compaction


async def _table(log: EmbeddedLog, source: TopicPartition) -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    for record in await everything(log, source):
        assert record.key is not None
        if record.value is None:
            table.pop(record.key, None)
        else:
            table[record.key] = record.value
    return table


async def _write_table(log: EmbeddedLog, source: TopicPartition, rounds: int, table: dict[bytes, bytes]) -> None:
    """Set and delete some keys, in `table` as well."""
    for n in range(rounds):
        rows = [Message(b"k%d" % (k * (n + 1) % 97), b"%d.%d" % (n, k)) for k in range(30)]
        if n % 3 == 0:
            rows.append(Message(b"k%d" % (n % 97), None))
        await log.append(source, rows)
        for key, value, _ in rows:
            assert key is not None
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value


@pytest.fixture
async def changelog(embedded: EmbeddedLog) -> TopicPartition:
    return await made(embedded, "changelog", cleanup="compact")


async def test_compaction_keeps_the_last_of_each_key_with_its_offset_and_time(
    embedded: EmbeddedLog, changelog: TopicPartition, tmp_path: Path
) -> None:
    table: dict[bytes, bytes] = {}
    await _write_table(embedded, changelog, 60, table)
    before = {record.offset: record for record in await everything(embedded, changelog)}
    bounds = await embedded.bounds(changelog)
    await embedded.cleaner.round(eager=True)
    after = await everything(embedded, changelog)
    assert await embedded.bounds(changelog) == bounds
    assert await _table(embedded, changelog) == table
    assert all(before[record.offset] == record for record in after)
    last_batch = 31  # is never compacted
    assert len(after) <= 97 + last_batch < len(before)
    offsets = [record.offset for record in after]
    assert offsets == sorted(offsets)
    await _write_table(embedded, changelog, 65, table)
    await embedded.cleaner.round(eager=True)
    assert await _table(embedded, changelog) == table
    await embedded.close()
    again = Directory(tmp_path / "data").open()
    assert isinstance(again, EmbeddedLog)
    assert await _table(again, changelog) == table
    await again.close()


async def test_a_compacted_topic_can_be_read_from_every_offset_to_every_other(
    embedded: EmbeddedLog, changelog: TopicPartition
) -> None:
    await _write_table(embedded, changelog, 8, {})
    await embedded.cleaner.round(eager=True)
    everything_left = await everything(embedded, changelog)
    _, end = await embedded.bounds(changelog)
    for start in range(0, end, 7):
        for stop in range(start + 1, end + 1, 11):
            found: list[Record] = []
            position = start
            async for batch in embedded.read(changelog, start, stop):
                found += batch.records
                position = batch.next_offset
            assert position == stop
            assert found == [record for record in everything_left if start <= record.offset < stop]


async def test_a_time_is_still_found_after_compaction(embedded: EmbeddedLog, changelog: TopicPartition) -> None:
    acks = []
    for n in range(20):
        acks.append(await embedded.append(changelog, [Message(b"%d" % (n % 3), b"")] * 4))
        await asyncio.sleep(0.002)
    await embedded.cleaner.round(eager=True)
    left = await everything(embedded, changelog)
    for ack in acks:
        found = await embedded.offset_at(changelog, ack.time)
        assert [r for r in left if r.offset >= found] == [r for r in left if r.time >= ack.time]


async def test_deletions_are_kept_for_a_while_and_then_forgotten(
    embedded: EmbeddedLog, changelog: TopicPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embedded.append(changelog, [Message(b"a", b"1"), Message(b"b", b"1")])
    await embedded.append(changelog, [Message(b"a", None)])
    await embedded.append(changelog, [Message(b"last", b"")])
    await embedded.cleaner.round(eager=True)
    assert [(r.key, r.value) for r in await everything(embedded, changelog)] == [
        (b"b", b"1"),
        (b"a", None),
        (b"last", b""),
    ]
    monkeypatch.setattr(cleaning, "TOMBSTONE_MS", -1)
    await embedded.append(changelog, [Message(b"last", b"")])
    await embedded.cleaner.round(eager=True)
    assert [(r.key, r.value) for r in await everything(embedded, changelog)] == [(b"b", b"1"), (b"last", b"")]


async def test_appends_go_on_during_compaction_and_nothing_is_lost(
    embedded: EmbeddedLog, changelog: TopicPartition
) -> None:
    table: dict[bytes, bytes] = {}
    await _write_table(embedded, changelog, 300, table)
    cleaning_ = asyncio.create_task(embedded.cleaner.round(eager=True))
    while not cleaning_.done():
        await _write_table(embedded, changelog, 4, table)
    await cleaning_
    assert await _table(embedded, changelog) == table
