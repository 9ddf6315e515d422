"""kill -9 at any moment: what was acknowledged is there, and nothing is torn."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agnt5_engine.transport.base import TopicPartition
from tests.transport.clusters import Directory, everything
from tests.transport.writer import PARTITIONS

ROUNDS = 20
_ROOT = Path(__file__).parent.parent.parent


def _killed_writer(url: str, life: int, after: float) -> list[list[str]]:
    """What a writer acknowledged until it was killed, `after` seconds after its first acknowledgement."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.transport.writer", url, str(life)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert writer.stdout is not None
    first = writer.stdout.readline()
    timer = subprocess.Popen(["sleep", str(after)])
    timer.wait()
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    lines = (first + rest).splitlines(keepends=True)
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.mark.slow
async def test_killed_at_any_moment_no_acknowledged_record_is_lost_or_out_of_place(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    acknowledged: dict[tuple[int, int], tuple[int, str]] = {}
    checkpoint = 0
    for life in range(ROUNDS):
        after = random.uniform(0, 0.25)
        for line in await asyncio.to_thread(_killed_writer, directory.url, life, after):
            if line[0] == "appended":
                acknowledged[int(line[1]), int(line[2])] = (int(line[3]), line[4])
            else:
                checkpoint = int(line[1])
        log = directory.open()
        try:
            for partition in range(PARTITIONS):
                records = await everything(log, TopicPartition("journal", partition))
                assert [r.offset for r in records] == list(range(len(records))), "a gap, or an offset given twice"
                for (at, offset), (count, first) in acknowledged.items():
                    if at == partition:
                        stem = first.rpartition(".")[0]
                        values = [record.value or b"" for record in records[offset : offset + count]]
                        expected = [f"{stem}.{k}".encode() + b"." * (37 * k) for k in range(count)]
                        assert values == expected, f"acknowledged in life {stem.split('.')[0]}, not there in {life}"
            rows = await everything(log, TopicPartition("changelog", 0))
            committed = await log.committed("group", TopicPartition("journal", 0)) or 0
            assert committed >= checkpoint
            assert len(rows) == 21 * committed, "a checkpoint is torn"
            if rows:
                assert rows[-1].value == b"%d" % committed, "rows and offset are of different checkpoints"
        finally:
            await log.close()
    assert len(acknowledged) > ROUNDS
