"""Kafka as the engine's log: what is said to be durable is, in order, and what cannot be is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from agnt5_engine.transport.base import (
    BadTopicError,
    Message,
    OffsetGoneError,
    RetriableError,
    TooLargeError,
    TopicPartition,
    TopicSpec,
)
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import everything, made, plain

Fresh = Callable[[str], str]


async def test_an_append_returns_where_and_when_it_landed(log: KafkaLog, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    before = time.time() * 1000
    first = await log.append(target, [Message(b"k", b"1"), Message(b"k", b"2", (("h", b"x"),))])
    second = await log.append(target, [Message(None, b"3")])
    assert (first.offset, second.offset) == (0, 2)
    records = await everything(log, target)
    assert [(r.offset, r.key, r.value, r.headers) for r in records] == [
        (0, b"k", b"1", ()),
        (1, b"k", b"2", (("h", b"x"),)),
        (2, None, b"3", ()),
    ]
    assert records[0].time == records[1].time == first.time
    assert records[2].time == second.time
    assert before - 1000 <= first.time <= time.time() * 1000 + 1000


async def test_concurrent_appends_land_in_call_order_and_each_knows_its_offset(log: KafkaLog, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    acks = await asyncio.gather(
        *(log.append(target, [Message(None, b"%d.%d" % (n, k)) for k in range(n % 3 + 1)]) for n in range(500))
    )
    records = await everything(log, target)
    expected = [b"%d.%d" % (n, k) for n in range(500) for k in range(n % 3 + 1)]
    assert [r.value for r in records] == expected
    for n, ack in enumerate(acks):
        assert records[ack.offset].value == b"%d.0" % n


async def test_an_append_larger_than_one_batch_is_split_and_stays_in_order(log: KafkaLog, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    big = [Message(b"%d" % n, b"x" * 100_000) for n in range(35)]
    ack, after = await asyncio.gather(log.append(target, big), log.append(target, [Message(b"after", b"")]))
    assert ack.offset == 0
    records = await everything(log, target)
    assert [r.key for r in records] == [b"%d" % n for n in range(35)] + [b"after"]
    assert after.offset == 35


async def test_a_record_too_large_is_refused_alone_and_its_neighbours_land(log: KafkaLog, fresh: Fresh) -> None:
    name = fresh("t")
    await log.create([TopicSpec(name, 1, "delete", None, 10_000)], 1)
    target = TopicPartition(name, 0)
    results = await asyncio.gather(
        *(log.append(target, [Message(b"%d" % n, b"x" * (20_000 if n == 7 else 900))]) for n in range(30)),
        return_exceptions=True,
    )
    assert isinstance(results[7], TooLargeError)
    assert "max.message.bytes" in str(results[7])
    assert [r.key for r in await everything(log, target)] == [b"%d" % n for n in range(30) if n != 7]
    assert (await log.append(target, [Message(b"next", b"")])).offset == 29


async def test_a_record_without_key_is_refused_by_a_compacted_topic_and_the_next_lands(
    log: KafkaLog, fresh: Fresh
) -> None:
    target = await made(log, fresh("t"), cleanup="compact")
    with pytest.raises(Exception, match="refuses the record"):
        await log.append(target, [Message(None, b"x")])
    assert (await log.append(target, [Message(b"k", b"x")])).offset == 0


async def test_nothing_creates_a_topic_by_asking_for_it(log: KafkaLog, fresh: Fresh) -> None:
    missing = TopicPartition(fresh("missing"), 0)
    with pytest.raises(BadTopicError, match="does not exist; create it"):
        await log.append(missing, [Message(b"k", b"v")])
    with pytest.raises(BadTopicError, match="does not exist"):
        await log.bounds(missing)
    with pytest.raises(BadTopicError, match="does not exist"):
        async for _ in log.read(missing, 0, 1):
            pass
    assert missing.topic not in await log.topics()
    here = await made(log, fresh("t"))
    with pytest.raises(BadTopicError, match="has 1 partitions, none numbered 5"):
        await log.append(TopicPartition(here.topic, 5), [Message(b"k", b"v")])


async def test_reading_before_the_start_of_the_log_is_an_error_not_a_skip(log: KafkaLog, fresh: Fresh) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
    from aiokafka.structs import TopicPartition as KafkaPartition

    target = await made(log, fresh("t"))
    await log.append(target, [Message(b"k", b"%d" % n) for n in range(10)])
    admin = AIOKafkaAdminClient(bootstrap_servers=log.wire.servers)
    await admin.start()
    await admin.delete_records({KafkaPartition(*target): RecordsToDelete(before_offset=6)})
    await admin.close()
    assert await log.bounds(target) == (6, 10)
    with pytest.raises(OffsetGoneError, match="does not hold offset 3"):
        async for _ in log.read(target, 3, 10):
            pass
    assert [r.offset for r in await everything(log, target, 6)] == [6, 7, 8, 9]


async def test_offsets_are_found_by_time(log: KafkaLog, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    first = await log.append(target, [Message(b"k", b"1")])
    await asyncio.sleep(0.02)
    second = await log.append(target, [Message(b"k", b"2")])
    assert await log.offset_at(target, first.time) == 0
    assert await log.offset_at(target, first.time + 1) == 1
    assert await log.offset_at(target, second.time + 1) == 2


async def test_a_log_whose_broker_never_answers_gives_up_when_its_patience_ends() -> None:
    log = KafkaLog(plain("127.0.0.1:1"), patience=0.5)
    with pytest.raises(RetriableError, match=r"127\.0\.0\.1:1"):
        await log.cluster_id()
    with pytest.raises(RetriableError):
        await log.append(TopicPartition("t", 0), [Message(b"k", b"v")])
    await log.close()


async def test_the_cluster_has_a_name_and_brokers(log: KafkaLog) -> None:
    assert len(await log.cluster_id()) >= 16
    assert await log.brokers() == 1
