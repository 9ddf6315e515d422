"""W0: what the log itself can do, in the same run: the yardstick for the rest.

On Kafka by a plain aiokafka client, with nothing of the engine in between; beside it the engine's own producer.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from pydantic_core import to_json

from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import StepSucceeded
from agnt5_engine.settings import load_settings
from agnt5_engine.transport.base import Log, Message, TopicPartition, TopicSpec
from agnt5_engine.transport.embedded.log import open_log as open_embedded
from agnt5_engine.transport.kafka import open_log as open_kafka
from benchmarks.figures import Figures, Finding, milliseconds
from benchmarks.kafka import administering
from benchmarks.sizes import Sizes
from benchmarks.stage import PARTITIONS, Stage
from benchmarks.work import Work

VALUE = b"v" * 250
_BATCH = 100
_BARE = "bare loop: resume, Avro record, batch, ack"


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    found = _embedded(stage) if stage.broker is None else _kafka(stage, stage.broker.bootstrap)
    async for finding in found:
        yield finding


async def ack_times(stage: Stage, count: int) -> list[float]:
    """How long a single record takes to be acknowledged, one after the other, in seconds."""
    if stage.broker is None:
        log = await _embedded_log(stage.folder / f"yardstick-{uuid.uuid4().hex[:8]}")
        try:
            return await _one_by_one(lambda: log.append(TopicPartition("yardstick", 0), [Message(None, VALUE)]), count)
        finally:
            await log.close()
    topic = await make_topic(stage.broker.bootstrap, 1)
    producer = _producer(stage.broker.bootstrap)
    await producer.start()
    try:
        return await _one_by_one(lambda: producer.send_and_wait(topic, VALUE, partition=0), count)
    finally:
        await producer.stop()


async def _one_by_one(append: Callable[[], Awaitable[object]], count: int) -> list[float]:
    for _ in range(max(10, count // 10)):
        await append()
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await append()
        took.append(time.perf_counter() - began)
    return took


async def _kafka(stage: Stage, bootstrap: str) -> AsyncIterator[Finding]:
    sizes = stage.sizes
    yield Finding("produce and ack, one record", milliseconds(await ack_times(stage, sizes.acks)))
    topic = await make_topic(bootstrap, PARTITIONS)
    log = open_kafka(load_settings(broker=f"kafka://{bootstrap}"), patience=30)
    try:
        target = TopicPartition(topic, 0)
        took = await _one_by_one(lambda: log.append(target, [Message(None, VALUE)]), sizes.acks)
        yield Finding("the same by the engine's producer", milliseconds(took))
        yield Finding("engine's producer, batches of 100, 8 partitions", await _appends(log, topic, sizes.records))
        yield Finding(_BARE, await _bare_steps(log, topic, sizes))
    finally:
        await log.close()
    topic = await make_topic(bootstrap, PARTITIONS)
    await _send_batches(bootstrap, topic, sizes.records // 10)
    yield Finding("send_batch, batches of 100, 8 partitions", await _send_batches(bootstrap, topic, sizes.records))
    yield Finding("getmany, 8 partitions", await _get_many(bootstrap, topic))


async def _embedded(stage: Stage) -> AsyncIterator[Finding]:
    sizes = stage.sizes
    yield Finding("append and sync, one record", milliseconds(await ack_times(stage, sizes.acks)))
    log = await _embedded_log(stage.folder / f"yardstick-{uuid.uuid4().hex[:8]}")
    try:
        yield Finding("batches of 100, 8 partitions", await _appends(log, "yardstick", sizes.records))
        yield Finding(_BARE, await _bare_steps(log, "yardstick", sizes))
        cpu, began, count = time.process_time(), time.perf_counter(), 0
        for partition in range(PARTITIONS):
            source = TopicPartition("yardstick", partition)
            first, end = await log.bounds(source)
            async for batch in log.read(source, first, end):
                count += len(batch.records)
        yield Finding("read, 8 partitions", _rate(count, began, cpu))
    finally:
        await log.close()


async def _appends(log: Log, topic: str, records: int) -> Figures:
    """Every partition has a writer that appends one batch after the other."""
    messages = [Message(None, VALUE)] * _BATCH
    rounds = max(1, records // PARTITIONS // _BATCH)

    async def write(partition: int, rounds: int) -> None:
        for _ in range(rounds):
            await log.append(TopicPartition(topic, partition), messages)

    await asyncio.gather(*(write(partition, max(1, rounds // 10)) for partition in range(PARTITIONS)))
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(write(partition, rounds) for partition in range(PARTITIONS)))
    return _rate(rounds * PARTITIONS * _BATCH, began, cpu)


async def _bare_steps(log: Log, topic: str, sizes: Sizes) -> Figures:
    """W1 without an engine: coroutines whose every step is a record in Avro, and which go on at its ack. Nothing is
    decided, kept, replayed or recovered."""

    async def write(partition: int, runs: int) -> None:
        going = deque(_bare_run(f"run{partition}x{number}", sizes.steps) for number in range(runs))
        while going:
            now = [going.popleft() for _ in range(min(_BATCH, len(going)))]
            records = [(run, record) for run in now if (record := next(run, None)) is not None]
            messages = [Message(record.run_id.encode(), encode(record)) for _, record in records]
            if messages:
                await log.append(TopicPartition(topic, partition), messages)
            going.extend(run for run, _ in records)

    each = sizes.runs // PARTITIONS
    await asyncio.gather(*(write(partition, max(1, each // 10)) for partition in range(PARTITIONS)))
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(write(partition, each) for partition in range(PARTITIONS)))
    seconds, steps = time.perf_counter() - began, each * PARTITIONS * sizes.steps
    return {"steps_per_s": steps / seconds, "client_cpu_us_per_step": (time.process_time() - cpu) / steps * 1e6}


def _bare_run(run_id: str, steps: int) -> Iterator[StepSucceeded]:
    """What it yields is written; it is resumed at the ack."""
    for number in range(steps):
        yield StepSucceeded(run_id, str(number), 0, to_json({"i": number, "ok": True}), 0)


async def _send_batches(bootstrap: str, topic: str, records: int) -> Figures:
    producer = _producer(bootstrap)
    await producer.start()
    try:
        rounds = max(1, records // PARTITIONS // _BATCH)
        cpu, began = time.process_time(), time.perf_counter()

        async def write(partition: int) -> None:
            for _ in range(rounds):
                batch = producer.create_batch()
                for _ in range(_BATCH):
                    batch.append(key=None, value=VALUE, timestamp=None)
                batch.close()
                await (await producer.send_batch(batch, topic, partition=partition))

        await asyncio.gather(*(write(partition) for partition in range(PARTITIONS)))
        return _rate(rounds * PARTITIONS * _BATCH, began, cpu)
    finally:
        await producer.stop()


async def _get_many(bootstrap: str, topic: str) -> Figures:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False,
        isolation_level="read_committed",
    )  # fmt: skip
    await consumer.start()
    try:
        left = sum((await consumer.end_offsets(list(consumer.assignment()))).values())
        cpu, began, count = time.process_time(), time.perf_counter(), 0
        while count < left:
            found = await consumer.getmany(timeout_ms=1_000)
            count += sum(map(len, found.values()))
        return _rate(count, began, cpu)
    finally:
        await consumer.stop()


def _rate(records: int, began: float, cpu: float) -> Figures:
    seconds = time.perf_counter() - began
    return {"records_per_s": records / seconds, "client_cpu_us_per_record": (time.process_time() - cpu) / records * 1e6}


def _producer(bootstrap: str) -> AIOKafkaProducer:
    return AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_batch_size=1 << 20)


async def make_topic(bootstrap: str, partitions: int) -> str:
    name = f"yardstick-{uuid.uuid4().hex[:8]}"
    async with administering(bootstrap) as admin:
        await admin.create_topics([NewTopic(name, partitions, 1)])
    return name


async def _embedded_log(folder: Path) -> Log:
    log = open_embedded(f"embedded://{folder}")
    await log.create([TopicSpec("yardstick", PARTITIONS, "delete", None, 1 << 20)], 1)
    return log


WORK = Work("W0", "The log's own limit", measure)
