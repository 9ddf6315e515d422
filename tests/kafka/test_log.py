"""Kafka as the engine's log: what is said to be durable is, in order, and what cannot be is said."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from agnt5_engine.transport.base import (
    BadTopicError,
    Message,
    OffsetGoneError,
    RetriableError,
    TopicPartition,
    TopicSpec,
)
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.administrator import delete_records
from tests.kafka.real_log import everything, made, plain

Fresh = Callable[[str], str]


async def test_an_append_larger_than_one_batch_is_split_and_stays_in_order(log: KafkaLog, fresh: Fresh) -> None:
    target = await made(log, fresh("t"))
    big = [Message(b"%d" % n, b"x" * 100_000) for n in range(35)]
    ack, after = await asyncio.gather(log.append(target, big), log.append(target, [Message(b"after", b"")]))
    assert ack.offset == 0
    records = await everything(log, target)
    assert [r.key for r in records] == [b"%d" % n for n in range(35)] + [b"after"]
    assert after.offset == 35


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
    target = await made(log, fresh("t"))
    await log.append(target, [Message(b"k", b"%d" % n) for n in range(10)])
    await delete_records(log.wire.servers, target.topic, target.partition, before=6)
    assert await log.bounds(target) == (6, 10)
    with pytest.raises(OffsetGoneError, match="does not hold offset 3"):
        async for _ in log.read(target, 3, 10):
            pass
    assert [r.offset for r in await everything(log, target, 6)] == [6, 7, 8, 9]


async def test_a_log_whose_broker_never_answers_gives_up_when_its_patience_ends() -> None:
    log = KafkaLog(plain("127.0.0.1:1"), patience=0.5, delivery_timeout=0.5)
    with pytest.raises(RetriableError, match=r"127\.0\.0\.1:1"):
        await log.cluster_id()
    with pytest.raises(RetriableError):
        await log.append(TopicPartition("t", 0), [Message(b"k", b"v")])
    await log.close()


async def test_the_cluster_has_a_name_and_brokers(log: KafkaLog) -> None:
    assert len(await log.cluster_id()) >= 16
    assert await log.brokers() == 1


async def test_an_append_with_one_bad_record_lands_not_at_all_and_its_neighbours_whole(
    log: KafkaLog, fresh: Fresh
) -> None:
    name = fresh("t")
    await log.create([TopicSpec(name, 1, "delete", None, 10_000)], 1)
    target = TopicPartition(name, 0)
    good = [Message(b"good", b"x" * 900) for _ in range(3)]
    large = [Message(b"bad", b"x" * 900), Message(b"bad", b"x" * 20_000)]
    wrong = [Message(b"bad", b"x"), Message("text", b"x")]  # type: ignore[arg-type]
    results = await asyncio.gather(
        *(log.append(target, messages) for messages in (good, large, good, wrong, good)), return_exceptions=True
    )
    assert [type(result).__name__ for result in results] == ["Ack", "TooLargeError", "Ack", "TypeError", "Ack"]
    assert [r.key for r in await everything(log, target)] == [b"good"] * 9
    many = [Message(b"many", b"x" * 900) for _ in range(50)]  # together larger than the topic takes at once
    assert (await log.append(target, many)).offset == 9
    assert (await log.bounds(target))[1] == 59


async def test_aborted_and_compacted_records_are_passed_over_exactly(log: KafkaLog, fresh: Fresh) -> None:
    from aiokafka import AIOKafkaProducer

    target = await made(log, fresh("t"))
    async with AIOKafkaProducer(
        bootstrap_servers=log.wire.servers, transactional_id=fresh("id"), linger_ms=0
    ) as producer:
        for n in range(10):
            await producer.begin_transaction()
            await producer.send_and_wait(target.topic, b"%d" % n, partition=0)
            await log.append(target, [Message(None, b"plain %d" % n)])
            await (producer.abort_transaction() if n % 2 else producer.commit_transaction())
    _, end = await log.bounds(target)
    expected = [value for n in range(10) for value in ([b"%d" % n] if n % 2 == 0 else []) + [b"plain %d" % n]]
    assert [r.value for r in await everything(log, target)] == expected
    for start in range(end):
        offsets = [r.offset async for batch in log.read(target, start, end) for r in batch.records]
        assert offsets == sorted(set(offsets))
        assert all(offset >= start for offset in offsets)


async def test_a_call_given_up_while_it_connects_leaves_no_connection_behind(kafka: str) -> None:
    for moment in range(30):
        log = KafkaLog(plain(kafka), patience=30)
        call = asyncio.create_task(log.cluster_id())
        await asyncio.sleep(moment * 0.0004)
        call.cancel()
        await asyncio.wait([call])
        await log.close()
    gc.collect()  # a connection left open is an error by now (filterwarnings)
