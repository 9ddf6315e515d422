"""How fast the embedded log appends and reads on this machine: `python benchmarks/embedded_log.py [DIR]`.

Every append is synced to the disk before it counts. DIR should be on the disk you mean to use; by default a temporary
directory is made (and removed) in the working directory.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from agnt5_engine.transport.base import Message, TopicPartition, TopicSpec
from agnt5_engine.transport.embedded.log import EmbeddedLog, open_log

PARTITIONS = 8
VALUE_BYTES = 300
SECONDS = 1.5


def _row(name: str, records: int, seconds: float, cpu: float, note: str = "") -> None:
    print(f"{name:<46}{records / seconds:>12,.0f}/s{cpu / records * 1e6:>9.2f} us CPU/record  {note}")


async def _append(log: EmbeddedLog, size: int, writers: int) -> None:
    """`writers` callers, each appending batches of `size` one after the other."""
    messages = [Message(b"%016d" % n, os.urandom(VALUE_BYTES)) for n in range(size)]
    waits: list[float] = []
    until = time.perf_counter() + SECONDS

    async def write(writer: int) -> None:
        target = TopicPartition("journal", writer % PARTITIONS)
        while (start := time.perf_counter()) < until:
            await log.append(target, messages)
            waits.append(time.perf_counter() - start)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(write(writer) for writer in range(writers)))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    waits.sort()
    p50, p99 = (waits[int(len(waits) * share)] * 1e3 for share in (0.5, 0.99))
    note = f"ack p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    _row(f"append, batch of {size}, {writers} writer{'s' * (writers > 1)}", len(waits) * size, seconds, cpu, note)


async def _checkpoint(log: EmbeddedLog, rows: int) -> None:
    journal, changelog = TopicPartition("journal", 0), TopicPartition("changelog", 0)
    checkpointer = log.checkpointer("id", "group", changelog)
    await checkpointer.open()
    messages = [Message(b"%016d" % n, os.urandom(VALUE_BYTES)) for n in range(rows)]
    count = 100
    start, cpu = time.perf_counter(), time.process_time()
    for n in range(count):
        await checkpointer.write(messages, journal, n)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _row(f"checkpoint of {rows} rows", count * rows, seconds, cpu, f"{seconds / count * 1e3:.2f} ms each")


async def _read(log: EmbeddedLog, name: str, sources: Sequence[TopicPartition]) -> None:
    count = 0
    start, cpu = time.perf_counter(), time.process_time()
    for source in sources:
        first, end = await log.bounds(source)
        async for batch in log.read(source, first, end):
            count += len(batch.records)
    _row(name, count, time.perf_counter() - start, time.process_time() - cpu, f"{count:,} records")


async def _measure(directory: Path) -> None:
    log = open_log(f"embedded://{directory}")
    journal = [TopicPartition("journal", partition) for partition in range(PARTITIONS)]
    specs = [
        TopicSpec("journal", PARTITIONS, "delete", None, 1 << 20),
        TopicSpec("changelog", 1, "compact", None, 1 << 20),
    ]
    await log.create(specs, 1)
    for size in (1, 10, 100):
        for writers in (1, 32):
            await _append(log, size, writers)
    await _checkpoint(log, 500)
    await _read(log, "read, just written", journal)
    await log.close()
    start = time.perf_counter()
    log = open_log(f"embedded://{directory}")
    print(f"{'open after a clean end':<46}{(time.perf_counter() - start) * 1e3:>12.1f} ms")
    await _read(log, "read, after opening", journal)
    await log.close()


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else Path.cwd()
    with tempfile.TemporaryDirectory(dir=parent, prefix="bench-log-") as path:
        directory = Path(path)
        try:
            import uvloop
        except ImportError:
            asyncio.run(_measure(directory))
        else:
            uvloop.run(_measure(directory))
        stored = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(f"{'stored':<46}{stored / 2**20:>12.1f} MiB")


if __name__ == "__main__":
    main()
