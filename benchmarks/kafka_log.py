"""How fast Kafka is as the log, one JSON object per line: `python benchmarks/kafka_log.py [SERVERS]`.

SERVERS is a cluster's bootstrap address; by default a broker is started beside this (scripts/kafka) and stopped after.
On one machine the broker's CPU is part of what is measured; `cpu_us` is this process's own, per record.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from agnt5_engine.settings import Settings
from agnt5_engine.transport import make_membership
from agnt5_engine.transport.base import Batch, Membership, Message, OffsetGoneError, TopicPartition, TopicSpec
from agnt5_engine.transport.kafka import KafkaLog, open_log

SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
PARTITIONS = 8
VALUE = b"v" * 250
KEY = b"s" + b"k" * 20


def report(name: str, **numbers: float) -> None:
    print(json.dumps({"benchmark": name, **{key: round(value, 3) for key, value in numbers.items()}}), flush=True)


def quantiles(times: list[float]) -> dict[str, float]:
    times = sorted(times)
    return {"p50_ms": times[len(times) // 2] * 1e3, "p99_ms": times[len(times) * 99 // 100] * 1e3}


async def timed(work: Callable[[], Awaitable[int]]) -> dict[str, float]:
    """Rate and CPU of something that returns how many records it moved."""
    start, cpu = time.perf_counter(), time.process_time()
    records = await work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"records_per_s": records / seconds, "cpu_us": cpu / records * 1e6}


async def acks(log: KafkaLog, topic: str) -> None:
    target, times = TopicPartition(topic, 0), []
    for _ in range(3_000):
        start = time.perf_counter()
        await log.append(target, [Message(KEY, VALUE)])
        times.append(time.perf_counter() - start)
    report("produce+ack, one at a time", **quantiles(times))


async def appends(log: KafkaLog, topic: str, size: int, records: int) -> None:
    """Every partition has a writer that appends batches of `size`, each after the last one's ack."""
    messages = [Message(KEY, VALUE)] * size

    async def write(partition: int) -> int:
        done = 0
        while done < records // PARTITIONS:
            await log.append(TopicPartition(topic, partition), messages)
            done += size
        return done

    async def all_() -> int:
        return sum(await asyncio.gather(*(write(partition) for partition in range(PARTITIONS))))

    report(f"append, batches of {size}, {PARTITIONS} partitions", **await timed(all_))


async def recovery(log: KafkaLog, topic: str) -> None:
    async def read() -> int:
        count = 0
        for partition in range(PARTITIONS):
            source = TopicPartition(topic, partition)
            first, end = await log.bounds(source)
            async for batch in log.read(source, first, end):
                count += len(batch.records)
        return count

    report("recovery read", **await timed(read))


async def checkpoints(log: KafkaLog, topic: str, changelog: str, group: str) -> None:
    rows = [Message(b"%020d" % n, VALUE) for n in range(500)]

    def checkpointer(partition: int) -> Any:
        return log.checkpointer(f"{group}.{partition}", group, TopicPartition(changelog, partition))

    start = time.perf_counter()
    everyone = [checkpointer(partition) for partition in range(32)]
    await asyncio.gather(*(one.open() for one in everyone))
    report("open 32 checkpointers", seconds=time.perf_counter() - start)
    times = []
    cpu = time.process_time()
    for n in range(50):
        start = time.perf_counter()
        await everyone[0].write(rows, TopicPartition(topic, 0), n)
        times.append(time.perf_counter() - start)
    report("checkpoint of 500 rows", **quantiles(times), cpu_ms=(time.process_time() - cpu) / 50 * 1e3)
    start, cpu = time.perf_counter(), time.process_time()
    for n in range(5):
        writes = (one.write(rows, TopicPartition(topic, p % PARTITIONS), n) for p, one in enumerate(everyone))
        await asyncio.gather(*writes)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    report("32 checkpoints of 500 rows at once", seconds=seconds / 5, cpu_ms=cpu / 5 * 1e3)


class Counter:
    """A sink that counts."""

    def __init__(self) -> None:
        self.membership: Membership | None = None
        self.count = 0
        self.arrived = asyncio.Event()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        assert self.membership is not None
        for source in partitions:
            self.membership.seek(source, 0)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        pass

    def unreadable(self, source: TopicPartition, error: OffsetGoneError) -> None:
        raise error

    def standby(self, partitions: frozenset[int]) -> None:
        pass

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        self.count += len(batch.records)
        self.arrived.set()

    async def wait_for(self, count: int) -> None:
        while self.count < count:
            self.arrived.clear()
            await self.arrived.wait()


async def consumption(log: KafkaLog, settings: Settings, topic: str, group: str) -> None:
    sink = Counter()
    ends = [(await log.bounds(TopicPartition(topic, partition)))[1] for partition in range(PARTITIONS)]
    sink.membership = make_membership(
        settings.broker,
        app_id=group,
        instance_id="benchmark",
        advertised_url="http://127.0.0.1:8080",
        journal=topic,
        partitions=PARTITIONS,
        triggers=[],
        sink=sink,
        settings=settings,
    )
    await sink.membership.start()
    await sink.wait_for(1)

    async def drain() -> int:
        before = sink.count
        await sink.wait_for(sum(ends))
        return sink.count - before

    report("getmany, through Faust to the sink", **await timed(drain))
    times = []
    for n in range(1_000):
        seen, start = sink.count, time.perf_counter()
        await log.append(TopicPartition(topic, n % PARTITIONS), [Message(KEY, VALUE)])
        await sink.wait_for(seen + 1)
        times.append(time.perf_counter() - start)
    report("produce to sink", **quantiles(times))
    await sink.membership.stop(leave=True)


async def measure(servers: str) -> None:
    settings = Settings(broker=f"kafka://{servers}", partitions=PARTITIONS)
    log = open_log(settings, patience=30)
    run = uuid.uuid4().hex[:8]
    topic, changelog, group = f"bench.journal.{run}", f"bench.changelog.{run}", f"bench.{run}"
    await log.create(
        [
            TopicSpec(topic, PARTITIONS, "delete", 3_600_000, 2_000_000, log_append_time=True),
            TopicSpec(changelog, 32, "compact", None, 2_000_000),
        ],
        None,
    )
    await acks(log, topic)
    for size, records in ((1, 20_000), (30, 200_000), (1_000, 600_000)):
        await appends(log, topic, size, records)
    await recovery(log, topic)
    await consumption(log, settings, topic, group)
    await checkpoints(log, topic, changelog, group)
    await log.close()


def main() -> None:
    if len(sys.argv) > 1:
        uvloop.run(measure(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="kafka-benchmark-") as directory:
        where = ["--dir", f"{directory}/broker"]
        try:
            up = subprocess.run([str(SCRIPT), "up", *where], check=True, stdout=subprocess.PIPE, text=True)
            uvloop.run(measure(up.stdout.strip()))
        finally:
            subprocess.run([str(SCRIPT), "down", *where], check=True)


if __name__ == "__main__":
    main()
