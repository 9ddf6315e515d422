"""What the engine relies on, whoever keeps the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from agnt5_engine.transport.base import (
    BadTopicError,
    FencedError,
    Log,
    Message,
    OffsetGoneError,
    TooLargeError,
    TopicPartition,
    TransportError,
)
from tests.transport.clusters import Cluster, everything, made, spec

Fresh = Callable[[str], str]


async def test_an_append_returns_where_and_when_it_landed(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    before = time.time() * 1000
    messages = [Message(b"k", b"1"), Message(None, None), Message(b"", b"", (("name", b"x"), ("größe", b"")))]
    first = await log.append(target, messages)
    second = await log.append(target, [Message(None, b"3")])
    assert (first.offset, second.offset) == (0, 3)
    assert before - 1000 <= first.time <= second.time <= time.time() * 1000 + 1000
    records = await everything(log, target)
    assert [tuple(r) for r in records] == [
        (0, first.time, b"k", b"1", ()),
        (1, first.time, None, None, ()),
        (2, first.time, b"", b"", (("name", b"x"), ("größe", b""))),
        (3, second.time, None, b"3", ()),
    ]


async def test_appends_of_many_callers_land_whole_and_in_call_order(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    acks = await asyncio.gather(
        *(log.append(target, [Message(None, b"%d.%d" % (n, k)) for k in range(n % 4 + 1)]) for n in range(300))
    )
    records = await everything(log, target)
    assert [r.value for r in records] == [b"%d.%d" % (n, k) for n in range(300) for k in range(n % 4 + 1)]
    assert [r.offset for r in records] == list(range(len(records)))
    for n, ack in enumerate(acks):
        assert records[ack.offset].value == b"%d.0" % n
        assert records[ack.offset].time == ack.time


async def test_each_partition_gives_back_its_own_records_in_order(log: Log, fresh: Fresh) -> None:
    topic = (await made(log, fresh("t"), 3)).topic
    await asyncio.gather(
        *(log.append(TopicPartition(topic, n % 3), [Message(b"%d" % (n % 3), b"%d" % n)]) for n in range(30))
    )
    for partition in range(3):
        records = await everything(log, TopicPartition(topic, partition))
        assert [r.value for r in records] == [b"%d" % n for n in range(partition, 30, 3)]


async def test_an_append_of_thousands_reads_back_in_order(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    await log.append(target, [Message(b"%d" % n, b"x" * 200) for n in range(7_000)])
    await log.append(target, [Message(b"last", b"")])
    records = await everything(log, target)
    assert [r.key for r in records] == [*(b"%d" % n for n in range(7_000)), b"last"]


async def test_a_read_returns_exactly_the_range_asked_for(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    for n in range(10):
        await log.append(target, [Message(b"%d" % (5 * n + k), b"") for k in range(5)])
    for start, end in [(0, 50), (7, 33), (12, 13), (45, 50), (20, 20)]:
        found = []
        position = start
        async for batch in log.read(target, start, end):
            assert all(position <= record.offset < batch.next_offset for record in batch.records)
            position = batch.next_offset
            found += [record.offset for record in batch.records]
        assert found == list(range(start, end))
        assert position == end


async def test_a_read_from_an_offset_that_is_not_there_is_refused(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    await log.append(target, [Message(b"a", b"")])
    with pytest.raises(OffsetGoneError):
        await anext(aiter(log.read(target, 5, 9)))


async def test_the_bounds_follow_the_appends(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    assert await log.bounds(target) == (0, 0)
    await log.append(target, [Message(b"a", b"")] * 3)
    assert await log.bounds(target) == (0, 3)


async def test_a_record_too_large_is_refused_with_its_neighbours_unharmed(log: Log, fresh: Fresh) -> None:
    name = fresh("t")
    await log.create([spec(name, max_message_bytes=10_000)], 1)
    target = TopicPartition(name, 0)
    results = await asyncio.gather(
        *(log.append(target, [Message(b"%d" % n, b"x" * (20_000 if n == 7 else 900))]) for n in range(20)),
        return_exceptions=True,
    )
    assert isinstance(results[7], TooLargeError)
    assert name in str(results[7])
    assert "max.message.bytes" in str(results[7])
    assert [r.key for r in await everything(log, target)] == [b"%d" % n for n in range(20) if n != 7]


async def test_a_compacted_topic_refuses_a_record_without_key(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("c"), cleanup="compact")
    with pytest.raises(TransportError, match=target.topic):
        await log.append(target, [Message(None, b"")])
    assert (await log.append(target, [Message(b"b", b"")])).offset == 0


async def test_a_topic_is_made_by_create_and_never_by_a_write(log: Log, fresh: Fresh) -> None:
    name = fresh("t")
    with pytest.raises(BadTopicError, match=name):
        await log.append(TopicPartition(name, 0), [Message(b"a", b"")])
    assert await log.topics([name]) == {}
    await log.create([spec(name, 2)], 1)
    with pytest.raises(BadTopicError, match="2"):
        await log.append(TopicPartition(name, 2), [Message(b"a", b"")])


async def test_topics_are_described_in_the_logs_own_words(log: Log, fresh: Fresh) -> None:
    kept, compacted = fresh("kept"), fresh("compacted")
    await log.create([spec(kept, 3, retention_ms=86_400_000), spec(compacted, cleanup="compact")], 1)
    found = await log.topics([kept, compacted, fresh("missing")])
    assert sorted(found) == sorted([kept, compacted])
    assert found[kept].partitions == 3
    assert found[kept].config["cleanup.policy"] == "delete"
    assert found[kept].config["retention.ms"] == "86400000"
    assert found[compacted].config["cleanup.policy"] == "compact"
    assert {kept, compacted} <= (await log.topics()).keys()


async def test_making_a_topic_again_leaves_it_as_it_is(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"), 2)
    await log.append(target, [Message(b"a", b"")])
    await log.create([spec(target.topic, 2)], 1)
    assert await log.bounds(target) == (0, 1)


@pytest.mark.parametrize("name", ["", ".", "a topic", "ü", "x" * 250])
async def test_a_name_that_cannot_be_a_topic_is_refused(log: Log, name: str) -> None:
    with pytest.raises(BadTopicError):
        await log.create([spec(name)], 1)


async def test_a_time_finds_the_first_record_that_is_not_older(log: Log, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    acks = []
    for n in range(12):
        acks.append(await log.append(target, [Message(b"%d" % n, b"")] * 5))
        await asyncio.sleep(0.003)
    assert await log.offset_at(target, 0) == 0
    for ack in acks:
        assert await log.offset_at(target, ack.time) == ack.offset
        assert await log.offset_at(target, ack.time + 1) == ack.offset + 5
    assert await log.offset_at(target, acks[-1].time + 60_000) == 60


async def test_a_cluster_keeps_its_name(cluster: Cluster, log: Log) -> None:
    name = await log.cluster_id()
    assert name
    again = cluster.open()
    assert await again.cluster_id() == name
    await again.close()


async def _journal_and_changelog(log: Log, fresh: Fresh) -> tuple[TopicPartition, TopicPartition]:
    return await made(log, fresh("journal")), await made(log, fresh("changelog"), cleanup="compact")


async def _until_committed(log: Log, group: str, source: TopicPartition, offset: int) -> None:
    """Kafka shows an offset of a transaction a moment after it has acknowledged it; the marker row is the truth."""
    async with asyncio.timeout(30):
        while await log.committed(group, source) != offset:
            await asyncio.sleep(0.02)


async def test_a_checkpoint_brings_rows_and_the_groups_offset_together(log: Log, fresh: Fresh) -> None:
    journal, changelog = await _journal_and_changelog(log, fresh)
    group = fresh("g")
    checkpointer = log.checkpointer(fresh("id"), group, changelog)
    await checkpointer.open()
    assert await log.committed(group, journal) is None
    rows = [Message(b"%d" % n, b"row") for n in range(700)]
    end = await checkpointer.write([*rows, Message(b"marker", b"41")], journal, 42)
    assert end == 701
    await _until_committed(log, group, journal, 42)
    assert await log.committed(fresh("another"), journal) is None
    records = await everything(log, changelog)
    assert [r.key for r in records] == [*(b"%d" % n for n in range(700)), b"marker"]
    await checkpointer.write([Message(b"marker", b"50")], journal, 51)
    await _until_committed(log, group, journal, 51)
    await checkpointer.close()


async def test_an_owner_fenced_by_a_later_one_writes_nothing_more(log: Log, fresh: Fresh) -> None:
    journal, changelog = await _journal_and_changelog(log, fresh)
    name, group = fresh("id"), fresh("g")
    zombie = log.checkpointer(name, group, changelog)
    await zombie.open()
    await zombie.write([Message(b"a", b"zombie")], journal, 1)
    owner = log.checkpointer(name, group, changelog)
    await owner.open()
    for _ in range(2):
        with pytest.raises(FencedError, match="later owner"):
            await zombie.write([Message(b"b", b"zombie")], journal, 99)
    await owner.write([Message(b"c", b"owner")], journal, 5)
    assert [(r.key, r.value) for r in await everything(log, changelog)] == [(b"a", b"zombie"), (b"c", b"owner")]
    await _until_committed(log, group, journal, 5)
    await zombie.close()
    await owner.close()


async def test_owners_of_different_partitions_do_not_fence_each_other(log: Log, fresh: Fresh) -> None:
    journal, changelog = await _journal_and_changelog(log, fresh)
    group = fresh("g")
    first = log.checkpointer(fresh("id"), group, changelog)
    second = log.checkpointer(fresh("id"), fresh("g"), changelog)
    await first.open()
    await second.open()
    await first.write([Message(b"a", b"")], journal, 1)
    await second.write([Message(b"b", b"")], journal, 2)
    await _until_committed(log, group, journal, 1)
    await first.close()
    await second.close()


async def test_a_checkpoint_with_a_row_too_large_leaves_nothing(log: Log, fresh: Fresh) -> None:
    journal, changelog = await _journal_and_changelog(log, fresh)
    group = fresh("g")
    checkpointer = log.checkpointer(fresh("id"), group, changelog)
    await checkpointer.open()
    with pytest.raises(TooLargeError):
        await checkpointer.write([Message(b"small", b"x"), Message(b"large", b"x" * 2_500_000)], journal, 9)
    assert await everything(log, changelog) == []
    assert await log.committed(group, journal) is None
    await checkpointer.write([Message(b"next", b"x")], journal, 10)
    assert [r.key for r in await everything(log, changelog)] == [b"next"]
    await checkpointer.close()


async def test_appends_and_checkpoints_at_once_all_land(log: Log, fresh: Fresh) -> None:
    journal, changelog = await _journal_and_changelog(log, fresh)
    group = fresh("g")
    checkpointer = log.checkpointer(fresh("id"), group, changelog)
    await checkpointer.open()

    async def append() -> None:
        for n in range(200):
            await log.append(journal, [Message(b"%d" % n, b"")])

    async def checkpoint() -> None:
        for n in range(20):
            await checkpointer.write([Message(b"marker", b"%d" % n)], journal, n + 1)

    await asyncio.gather(append(), checkpoint())
    assert [r.key for r in await everything(log, journal)] == [b"%d" % n for n in range(200)]
    assert [r.value for r in await everything(log, changelog)] == [b"%d" % n for n in range(20)]
    await _until_committed(log, group, journal, 20)
    await checkpointer.close()
