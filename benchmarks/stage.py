"""Where one repeat of a work happens: fresh topics, a fresh folder, processors of its own."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from agnt5_engine.transport.base import Message, TopicPartition, TopicSpec
from agnt5_engine.transport.embedded.log import open_log
from benchmarks.accounting import Spent, Watch
from benchmarks.kafka import Kafka, administering
from benchmarks.processors import Processor
from benchmarks.sampler import FILE
from benchmarks.sizes import Sizes
from benchmarks.tally import FOLDER, Readings

PARTITIONS = 8
_FEED = 1_000
_EVENT_BYTES = 2**20


class Stage:
    """One repeat's surroundings. `broker` is None on the embedded engine; `number` counts repeats from 1.

    `close` ends every processor that was made here, and deletes their topics."""

    def __init__(self, sizes: Sizes, broker: Kafka | None, folder: Path, number: int = 1) -> None:
        self.sizes = sizes
        self.broker = broker
        self.number = number
        self.folder = folder
        self._processors: list[Processor] = []
        self._names: list[str] = []
        self.renew(PARTITIONS)

    def renew(self, partitions: int) -> None:
        """From here on: new topics with so many partitions, a new group, a new folder, nothing counted."""
        self.partitions = partitions
        self.name = f"b{uuid.uuid4().hex[:8]}"
        self._names.append(self.name)
        self.data = self.folder / self.name
        self.data.mkdir(parents=True)
        self.readings = Readings(self.data / "tally")

    @property
    def transport(self) -> str:
        return "embedded" if self.broker is None else "kafka"

    @property
    def heavy(self) -> bool:
        """Whether this repeat does the largest cases too."""
        return self.number <= self.sizes.heavy_repeats

    # ------------------------------------------------------------------ processors

    def processor(self, processes: int = 1, *, samples: Path | None = None, **settings: object) -> Processor:
        """One that is not started yet. `settings` by their names, over those of the benchmark. `samples`: where it
        writes what its sampler has seen."""
        chosen: dict[str, object] = {
            "broker": f"embedded://{self.data / 'log'}" if self.broker is None else f"kafka://{self.broker.bootstrap}",
            "data_dir": self.data / "state",
            "topic_prefix": f"{self.name}.",
            "group": self.name,
            "partitions": self.partitions,
            "trigger_start": "earliest",
            "session_timeout": self.sizes.session_timeout,
        } | settings
        environment = {f"AGNT5_{key.upper()}": str(value) for key, value in chosen.items()}
        environment |= {FOLDER: str(self.data / "tally"), "BENCH_TOPICS": f"{self.name}."}
        if samples is not None:
            environment[FILE] = str(samples)
        made = Processor(environment, self.data, processes)
        self._processors.append(made)
        return made

    async def close(self) -> None:
        for processor in self._processors:
            processor.kill()
        self._processors.clear()
        if self.broker is not None:
            async with administering(self.broker.bootstrap) as admin:
                mine = [topic for topic in await admin.list_topics() if topic.partition(".")[0] in self._names]
                if mine:
                    await admin.delete_topics(mine)

    def watch(self, **processors: Processor) -> Watch:
        """The CPU of processors, the broker and this process, from now on."""
        roots = {name: processor.pid for name, processor in processors.items()}
        if self.broker is not None and self.broker.pid is not None:
            roots["broker"] = self.broker.pid
        return Watch(roots).start()

    # ------------------------------------------------------------------ events

    async def make_topic(self, name: str) -> None:
        """A topic of events, for the triggers of this repeat. Before the processor starts; only needed on Kafka."""
        if self.broker is not None:
            async with administering(self.broker.bootstrap) as admin:
                await admin.create_topics([NewTopic(f"{self.name}.{name}", self.partitions, 1)])

    async def feed(self, topic: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Append events to a topic, by a client of the log. On the embedded engine only before the processor starts:
        its log belongs to one process."""
        encoded = [json.dumps(value).encode() for value in values]
        if self.broker is None:
            await self._feed_embedded(f"{self.name}.{topic}", encoded)
        else:
            await self._feed_kafka(f"{self.name}.{topic}", encoded)

    async def _feed_kafka(self, topic: str, values: list[bytes]) -> None:
        assert self.broker is not None
        producer = AIOKafkaProducer(bootstrap_servers=self.broker.bootstrap, acks="all", max_batch_size=256 * 1024)
        await producer.start()
        try:
            await producer.partitions_for(topic)
            sent = []
            for first in range(0, len(values), _FEED):
                # One batch for each partition in turn.
                partition = first // _FEED % self.partitions if len(values) > _FEED * self.partitions else None
                if partition is None:
                    for number, value in enumerate(values[first : first + _FEED]):
                        sent.append(await producer.send(topic, value, partition=number % self.partitions))
                    continue
                batch = producer.create_batch()
                for value in values[first : first + _FEED]:
                    batch.append(key=None, value=value, timestamp=None)
                batch.close()
                sent.append(await producer.send_batch(batch, topic, partition=partition))
            await asyncio.gather(*sent)
        finally:
            await producer.stop()

    async def _feed_embedded(self, topic: str, values: list[bytes]) -> None:
        log = open_log(f"embedded://{self.data / 'log'}")
        try:
            await log.create([TopicSpec(topic, self.partitions, "delete", 7 * 86_400_000, _EVENT_BYTES)], 1)
            for partition in range(self.partitions):
                mine = [Message(None, value) for value in values[partition :: self.partitions]]
                for first in range(0, len(mine), _FEED):
                    await log.append(TopicPartition(topic, partition), mine[first : first + _FEED])
        finally:
            await log.close()

    # ------------------------------------------------------------------ what happened

    async def until(self, slot: int, count: int, processor: Processor, seconds: float = 300.0) -> None:
        """Until so much has been counted. Raises TimeoutError."""
        await self.until_true(lambda: self.readings.count(slot) >= count, processor, seconds)

    async def until_true(self, happened: Callable[[], bool], processor: Processor, seconds: float = 300.0) -> None:
        """Until something has happened. Raises TimeoutError, or RuntimeError when the processor has ended."""
        end = time.monotonic() + seconds
        while not happened():
            processor.check()
            if time.monotonic() > end:
                raise TimeoutError(
                    f"not done within {seconds:.0f} s; the processor's log ends with\n{processor.tail()}"
                )
            await asyncio.sleep(0.005)

    def journal_bytes(self) -> int | None:
        """Bytes in the journal, the changelog and the outcomes on the broker's disk; None where that is not known."""
        if self.broker is None:
            return None
        found = [self.broker.log_bytes(f"{self.name}.{name}") for name in ("journal", "state-changelog", "outcomes")]
        return None if None in found else sum(size or 0 for size in found)


def cpu_figures(spent: Spent, per: int, unit: str) -> dict[str, float]:
    """CPU per unit of work by process, and how busy strangers kept the machine meanwhile."""
    figures = {f"{name}_cpu_us_per_{unit}": seconds / per * 1e6 for name, seconds in spent.cpu.items()}
    return figures | {"foreign_cores": spent.foreign_cores}
