"""A broker at its working pace.

A broker is a Java process: until its hot paths are compiled, an append costs it seven times as much, and the compiler
keeps a core busy. A broker in use has that behind it, so here it serves small appends and then a work that is not
counted before anything is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from agnt5_engine.settings import load_settings
from agnt5_engine.transport.base import Log, Message, TopicPartition
from agnt5_engine.transport.kafka import open_log
from benchmarks import w1_steps
from benchmarks.kafka import Kafka
from benchmarks.sizes import Sizes
from benchmarks.stage import PARTITIONS, Stage
from benchmarks.w0_yardstick import VALUE, make_topic

_AT_ONCE = 3


@contextlib.contextmanager
def warm_broker(folder: Path, sizes: Sizes, side: str) -> Iterator[Kafka | None]:
    """The broker of a side (`kafka`, `kafka, flush=1`), which nobody else uses, warmed up; gone afterwards. None for
    `embedded`."""
    if side == "embedded":
        yield None
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="broker-", ignore_cleanup_errors=True) as place:
        broker = Kafka(Path(place) / "broker", flush_each="flush=1" in side)
        try:
            uvloop.run(_warm(broker, sizes, folder))
            yield broker
        finally:
            broker.close()


async def _warm(broker: Kafka, sizes: Sizes, folder: Path) -> None:
    topic = await make_topic(broker.bootstrap, PARTITIONS)
    log = open_log(load_settings(broker=f"kafka://{broker.bootstrap}"), patience=30)
    end = time.monotonic() + sizes.warm_seconds
    try:
        await asyncio.gather(*(_append(log, TopicPartition(topic, number), end) for number in range(PARTITIONS)))
    finally:
        await log.close()
    stage = Stage(sizes, broker, folder)
    try:
        await w1_steps.steps(stage, sizes.runs)
    finally:
        await stage.close()


async def _append(log: Log, target: TopicPartition, until: float) -> None:
    while time.monotonic() < until:
        await log.append(target, [Message(None, VALUE)] * _AT_ONCE)
