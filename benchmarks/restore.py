"""How fast a partition's table is rebuilt from its changelog: `python -m benchmarks.restore BOOTSTRAP [ROWS]`.

Writes a changelog to a real broker through checkpoints (finished runs, waiting runs with what they wait for, some of it
deleted again, some of it in sessions), then restores it into fresh tables, as a processor does that takes a partition
over and has nothing of it. Prints one line of JSON; the topics are removed afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import structlog

from agnt5_engine.partition.recovery import Place, restore
from agnt5_engine.records.avro import encode
from agnt5_engine.records.rows import AskNote, HistoryRow, MarkerRow, PendingRow, RunRow, SessionRow
from agnt5_engine.runs import table
from agnt5_engine.settings import Settings
from agnt5_engine.topics import specs
from agnt5_engine.transport.base import Message, TopicPartition
from agnt5_engine.transport.kafka.log import KafkaLog
from benchmarks.kafka import administering

ROWS = 300_000
ROUNDS = 3
TARGET = 150_000
_CHECKPOINT = 4_000
_ORDER = b'{"order":1001,"sku":"B-2210","quantity":3,"total":"149.70","currency":"EUR","customer":"c-77120"}'


def _history(seq: int, event: str, path: str, name: str, value: bytes | None, asks: list[AskNote]) -> HistoryRow:
    return HistoryRow(
        seq, 1_767_000_000_000 + seq, event, path, "step", name, 0, 123456789, value, None, None, None, None, None, [],
        [], asks,
    )  # fmt: skip


def run_row(run_id: str, created: int, finished: int | None) -> RunRow:
    steps = ("validate", "charge", "confirm")
    history = [_history(0, "start", "", "", None, [AskNote("0", "step", steps[0], None)])]
    for n, name in enumerate(steps):
        asks = [AskNote(str(n + 1), "step", steps[n + 1], None)] if n < 2 else []
        history.append(_history(2 * n + 1, "resolved", str(n), name, b'{"order":1001,"charged":149.70}', asks))
    status = "running" if finished is None else "completed"
    trigger = b'{"kind":"event","topic":"orders","partition":3,"offset":88172}'
    return RunRow(
        status, created, finished, run_id, "orders", _ORDER, None, None, trigger, {}, None, [], 0, created,
        None if finished is None else _ORDER, None, None, None, None, None, None, None, [], [], [],
        history if finished is not None else [],
    )  # fmt: skip


def pending_row(run_id: str, ask: str, asked_at: int) -> PendingRow:
    return PendingRow(
        ask, asked_at, run_id, "0", "charge", "charge", _ORDER, None, None, 0, None, None, None, 0, None, 0, 0, False,
        None,
    )  # fmt: skip


def rows(count: int) -> list[Message]:
    """Two thirds finished runs, the rest runs that wait: for a step, or for a person's answer."""
    rng = random.Random(1)
    made: list[Message] = []
    now = 1_767_000_000_000
    while len(made) < count:
        now += 1
        run_id = f"{rng.getrandbits(128):032x}"
        kind = rng.random()
        if kind < 0.85:
            made.append(Message(table.run_key(run_id), encode(run_row(run_id, now, now + 40))))
            continue
        made.append(Message(table.run_key(run_id), encode(run_row(run_id, now, None))))
        start = _history(0, "start", "", "", None, [AskNote("0", "step", "charge", None)])
        made.append(Message(table.history_key(run_id, 0), encode(start)))
        ask = "user" if kind > 0.97 else "step"
        made.append(Message(table.pending_key(run_id, "0"), encode(pending_row(run_id, ask, now))))
        if kind < 0.90:
            made.append(Message(table.pending_key(run_id, "0"), None))
        elif kind > 0.98:
            session = SessionRow(run_id, now, None, None, {"cart": b'{"items":[1,2,3]}'}, [])
            made.append(Message(table.session_row_key(run_id), encode(session)))
    return made[:count]


async def measure(bootstrap: str, count: int, folder: Path, rounds: int = ROUNDS) -> dict[str, object]:
    prefix = f"bench{uuid.uuid4().hex[:8]}."
    settings = Settings(broker=f"kafka://{bootstrap}", topic_prefix=prefix, partitions=1, data_dir=folder)
    log = KafkaLog(settings.kafka_options(), patience=30)
    journal, changelog = TopicPartition(settings.journal_topic, 0), TopicPartition(settings.changelog_topic, 0)
    await log.create(specs(settings), settings.replication)
    try:
        cluster = await log.cluster_id()
        given = rows(count)
        checkpointer = log.checkpointer(f"{prefix}0", settings.group, changelog)
        await checkpointer.open()
        for at in range(0, count, _CHECKPOINT):
            some = given[at : at + _CHECKPOINT]
            head = MarkerRow(at, 0, 0, cluster, 1, True, 0, None, 0, "v1", "one")
            await checkpointer.write([*some, Message(table.MARKER, encode(head))], journal, at + 1)
        size = sum(len(m.key or b"") + len(m.value or b"") for m in given)
        del given, some
        gc.set_threshold(50_000, 20, 100)  # as a processor does
        seconds, cpu = [], []
        for n in range(rounds):
            place = Place(log, journal, changelog, cluster, folder / str(n), 1)
            began, used = time.perf_counter(), time.process_time()
            restored = await restore(place, checkpointer)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
            assert restored.marker is not None
            restored.table.close()
        return {
            "benchmark": "restore",
            "rows": count,
            "bytes_per_row": round(size / count),
            "rows_per_second": round(count / min(seconds)),
            "seconds": [round(s, 3) for s in seconds],
            "cpu_us_per_row": round(min(cpu) / count * 1e6, 2),
            "target_rows_per_second": TARGET,
        }
    finally:
        async with administering(bootstrap) as admin:
            await admin.delete_topics([spec.name for spec in specs(settings)])
        await log.close()


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("give the address of a broker: python -m benchmarks.restore 127.0.0.1:9092 (scripts/kafka up)")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    count = int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
    with tempfile.TemporaryDirectory(prefix="restore-", dir=".") as folder:
        work = measure(sys.argv[1], count, Path(folder))
        try:
            import uvloop
        except ImportError:
            result = asyncio.run(work)
        else:
            result = uvloop.run(work)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
