"""A process that appends and checkpoints until it is killed, and prints what was acknowledged."""

from __future__ import annotations

import asyncio
import sys

from agnt5_engine.transport.base import Message, TopicPartition
from agnt5_engine.transport.embedded.log import open_log
from tests.transport.clusters import spec

PARTITIONS = 3
WRITERS = 5


async def append(log: object, writer: int, life: int) -> None:
    target = TopicPartition("journal", writer % PARTITIONS)
    for n in range(1_000_000):
        values = [b"%d.%d.%d.%d" % (life, writer, n, k) + b"." * (37 * k) for k in range((n + writer) % 40 + 1)]
        ack = await log.append(target, [Message(b"%d" % writer, value) for value in values])  # type: ignore[attr-defined]
        print("appended", target.partition, ack.offset, len(values), values[0].decode(), flush=True)


async def checkpoint(log: object, life: int) -> None:
    journal, changelog = TopicPartition("journal", 0), TopicPartition("changelog", 0)
    checkpointer = log.checkpointer("id", "group", changelog)  # type: ignore[attr-defined]
    await checkpointer.open()
    start = await log.committed("group", journal) or 0  # type: ignore[attr-defined]
    for n in range(start + 1, 1_000_000):
        rows = [Message(b"%d" % k, b"%d" % n) for k in range(20)]
        await checkpointer.write([*rows, Message(b"marker", b"%d" % n)], journal, n)
        print("checkpoint", n, flush=True)


async def main(url: str, life: int) -> None:
    log = open_log(url)
    await log.create([spec("journal", PARTITIONS), spec("changelog", cleanup="compact")], 1)
    await asyncio.gather(checkpoint(log, life), *(append(log, writer, life) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
