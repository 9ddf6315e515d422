"""A checkpoint lands whole or not at all, and only the last owner's lands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agnt5_engine.transport.base import FencedError, Message, Record, TooLargeError, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import everything, plain, spec

Fresh = Callable[[str], str]


async def topics(log: KafkaLog, fresh: Fresh, partitions: int = 1) -> tuple[TopicPartition, TopicPartition]:
    journal, changelog = fresh("journal"), fresh("changelog")
    await log.create([spec(journal, partitions), spec(changelog, partitions, cleanup="compact")], 1)
    return TopicPartition(journal, 0), TopicPartition(changelog, 0)


async def after_takeover(log: KafkaLog, name: str, group: str, changelog: TopicPartition) -> list[Record]:
    """What the next owner recovers: Kafka shows a transaction a moment after it was committed, and `open` waits."""
    await log.checkpointer(name, group, changelog).open()
    return await everything(log, changelog)


async def test_a_checkpoint_writes_rows_and_the_groups_offset(log: KafkaLog, fresh: Fresh) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    checkpointer = log.checkpointer(name, group, changelog)
    await checkpointer.open()
    assert await log.committed(group, journal) is None
    rows = [Message(b"%d" % n, b"x") for n in range(500)]
    assert await checkpointer.write([*rows, Message(b"marker", b"41")], journal, 42) == 501
    # The transaction's own control record takes an offset; nobody reads it.
    assert await checkpointer.write([Message(b"marker", b"50")], journal, 51) == 503
    records = await after_takeover(log, name, group, changelog)
    assert [r.offset for r in records] == [*range(501), 502]
    assert await log.bounds(changelog) == (0, 504)
    assert await log.committed(group, journal) == 51
    await checkpointer.close()


async def test_reading_ends_at_the_end_even_when_only_control_records_are_left(log: KafkaLog, fresh: Fresh) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    checkpointer = log.checkpointer(name, group, changelog)
    await checkpointer.open()
    await checkpointer.write([Message(b"marker", b"1")], journal, 1)
    assert len(await after_takeover(log, name, group, changelog)) == 1
    batches = [batch async for batch in log.read(changelog, 1, 2)]
    assert [(batch.records, batch.next_offset) for batch in batches] == [([], 2)]


async def test_the_checkpoint_of_a_fenced_owner_lands_nothing(log: KafkaLog, fresh: Fresh, kafka: str) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    zombie = log.checkpointer(name, group, changelog)
    await zombie.open()
    await zombie.write([Message(b"a", b"zombie")], journal, 1)
    elsewhere = KafkaLog(plain(kafka), patience=30)
    owner = elsewhere.checkpointer(name, group, changelog)
    await owner.open()
    with pytest.raises(FencedError, match="later owner"):
        await zombie.write([Message(b"b", b"zombie")], journal, 99)
    with pytest.raises(FencedError):
        await zombie.write([Message(b"b", b"zombie")], journal, 99)
    await owner.write([Message(b"c", b"owner")], journal, 5)
    records = await after_takeover(log, name, group, changelog)
    assert [(r.key, r.value) for r in records] == [(b"a", b"zombie"), (b"c", b"owner")]
    assert await log.committed(group, journal) == 5
    await elsewhere.close()


async def test_an_owner_that_died_in_the_middle_of_a_checkpoint_leaves_nothing_behind(
    log: KafkaLog, fresh: Fresh
) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    dead = log.checkpointer(name, group, changelog)
    await dead.open()
    await dead._join()
    await dead._produce([Message(b"torn", b"x")])
    await dead._commit_offset(journal, 77)
    assert await log.bounds(changelog) == (0, 0), "an open transaction is not stable yet"
    owner = log.checkpointer(name, group, changelog)
    await owner.open()
    assert await everything(log, changelog) == []
    await owner.write([Message(b"whole", b"x")], journal, 3)
    assert [r.key for r in await after_takeover(log, name, group, changelog)] == [b"whole"]
    assert await log.committed(group, journal) == 3


async def test_a_row_too_large_undoes_its_checkpoint_and_the_next_one_lands(log: KafkaLog, fresh: Fresh) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    checkpointer = log.checkpointer(name, group, changelog)
    await checkpointer.open()
    with pytest.raises(TooLargeError):
        await checkpointer.write([Message(b"small", b"x"), Message(b"large", b"x" * 2_500_000)], journal, 9)
    await checkpointer.write([Message(b"next", b"x")], journal, 10)
    assert [r.key for r in await after_takeover(log, name, group, changelog)] == [b"next"]
    assert await log.committed(group, journal) == 10


async def test_a_checkpoint_whose_caller_was_cancelled_still_ends_whole(log: KafkaLog, fresh: Fresh) -> None:
    journal, changelog = await topics(log, fresh)
    name, group = fresh("id"), fresh("g")
    checkpointer = log.checkpointer(name, group, changelog)
    await checkpointer.open()
    for n in range(20):
        write = asyncio.create_task(checkpointer.write([Message(b"%d" % n, b"x")] * 50, journal, n + 1))
        await asyncio.sleep(0.0005 * n)
        write.cancel()
        await asyncio.wait([write])
    end = await checkpointer.write([Message(b"last", b"x")], journal, 100)
    records = await after_takeover(log, name, group, changelog)
    assert records[-1].key == b"last"
    assert records[-1].offset == end - 1
    counts = {key: sum(r.key == key for r in records) for key in {r.key for r in records}}
    assert all(count in (1, 50) for count in counts.values()), "no checkpoint is torn or doubled"


async def test_the_checkpoints_of_many_partitions_run_side_by_side(log: KafkaLog, fresh: Fresh) -> None:
    journal, changelog = await topics(log, fresh, partitions=32)
    group = fresh("g")
    all_ = [log.checkpointer(f"{group}-{p}", group, TopicPartition(changelog.topic, p)) for p in range(32)]
    await asyncio.gather(*(checkpointer.open() for checkpointer in all_))
    for round_ in range(3):
        await asyncio.gather(
            *(
                checkpointer.write([Message(b"marker", b"%d" % round_)], TopicPartition(journal.topic, p), round_ + 1)
                for p, checkpointer in enumerate(all_)
            )
        )
    for p in range(32):
        assert len(await after_takeover(log, f"{group}-{p}", group, TopicPartition(changelog.topic, p))) == 3
        assert await log.committed(group, TopicPartition(journal.topic, p)) == 3
