"""A table restored from its changelog in bulk is the table that the checkpoints wrote."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agnt5_engine.partition import recovery
from agnt5_engine.partition.recovery import Place, restore
from agnt5_engine.partition.table import Table, marker_now
from agnt5_engine.records.avro import encode, head
from agnt5_engine.records.rows import Held, SessionRow
from agnt5_engine.runs import pieces
from agnt5_engine.runs import table as keys
from agnt5_engine.runs.checkpoint import Row
from agnt5_engine.runs.restored import run_head
from agnt5_engine.transport.base import Batch, Record, TopicPartition
from benchmarks.restore import pending_row, run_row

_FAMILIES = tuple(b"rhpsCFAKQ"[n : n + 1] for n in range(9))


class Changelog:
    """A changelog in memory, and a log that has nothing else."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, key: bytes, value: bytes | None) -> None:
        self.records.append(Record(self.end, 1, key, value, ()))

    async def open(self) -> None:
        pass

    def compact(self, upto: int) -> None:
        """As Kafka does: of the records before `upto`, the last of each key is left."""
        last = {r.key: r.offset for r in self.records if r.offset < upto}
        self.records = [r for r in self.records if r.offset >= upto or last[r.key] == r.offset]

    @property
    def end(self) -> int:
        return self.records[-1].offset + 1 if self.records else 0

    async def bounds(self, source: TopicPartition) -> tuple[int, int]:
        return 0, self.end

    async def read(self, source: TopicPartition, start: int, end: int) -> AsyncIterator[Batch]:
        records = [r for r in self.records if start <= r.offset < end]
        for at in range(0, len(records), 700):
            batch = records[at : at + 700]
            yield Batch(batch, end if batch[-1] is records[-1] else batch[-1].offset + 1)


def _changes(rng: random.Random, count: int) -> list[list[Row]]:
    """Checkpoints of runs that start, wait, are paused and resumed, finish, live again and are forgotten."""
    runs: dict[str, tuple[int, int | None]] = {}
    checkpoints: list[list[Row]] = []
    made = 0
    while made < count:
        rows: dict[bytes, Row] = {}

        def put(key: bytes, record: Any, rows: dict[bytes, Row] = rows) -> None:
            rows[key] = Row(key, encode(record) if record is not None else None, record)

        for _ in range(rng.randint(1, 40)):
            made += 1
            run_id = rng.choice(list(runs)) if runs and rng.random() < 0.6 else f"{rng.getrandbits(64):016x}"
            created, _ = runs.get(run_id, (1_767_000_000_000 + made, None))
            pending, what = keys.pending_key(run_id, "0"), rng.random()
            finished = created + made if what < 0.4 else None
            if what > 0.92 and runs.get(run_id, (0, None))[1] is not None and keys.run_key(run_id) not in rows:
                del runs[run_id]
                rows[keys.run_key(run_id)] = Row(keys.run_key(run_id), None)
                index = keys.created_key(created, run_id.encode())
                for key in (index, pending, keys.session_row_key(run_id)):
                    rows[key] = Row(key, None)
                continue
            runs[run_id] = (created, finished)
            status = "completed" if finished else "paused" if what < 0.5 else "running"
            input = b"x" * rng.randrange(300)
            put(keys.run_key(run_id), run_row(run_id, created, finished)._replace(status=status, input=input))
            if what < 0.6:
                rows[pending] = Row(pending, None)
            else:
                put(pending, pending_row(run_id, "user" if int(run_id, 16) % 2 else "step", created))
            if what < 0.1:
                queue = [Held(1, 2, b"x")] if what < 0.05 else []
                put(keys.session_row_key(run_id), SessionRow(run_id, 1, None, None, {}, queue))
        checkpoints.append(list(rows.values()))
    return checkpoints


def _content(table: Table) -> dict[bytes, bytes]:
    """Rows and index, without what is known to be stale in both: finishing times that a run no longer has."""
    found = {key: value for family in _FAMILIES for key, value in table.scan(family)}
    for key in [key for key in found if key[:1] == keys.BY_FINISHED]:
        finished_at, run_id = keys.finished_of(key)
        row = found.get(keys.run_key(run_id))
        if row is None or run_head(row)[2] != finished_at:
            del found[key]
    return found


@pytest.mark.parametrize("many", [0, 10**9], ids=["filling", "logged"])
@pytest.mark.parametrize("size", [pieces.SIZE, 90], ids=["whole", "in pieces"])
@pytest.mark.parametrize("seed", range(3))
async def test_bulk_restore_makes_the_table_that_the_checkpoints_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, size: int, many: int
) -> None:
    monkeypatch.setattr(pieces, "SIZE", size)
    monkeypatch.setattr(recovery, "_MANY_ROWS", many)
    monkeypatch.setattr(recovery, "_WRITE_ROWS", 500)
    changelog, live = Changelog(), Table(tmp_path / "live")
    place = Place(changelog, TopicPartition("j", 0), TopicPartition("c", 0), "here", tmp_path / "a", 1)  # type: ignore[arg-type]
    for rows in _changes(random.Random(seed), 6_000):
        # A pending row is deleted with what it asked, as `collect` does.
        for row in rows:
            if row.key[:1] not in keys.DERIVED_FAMILIES:
                for kept in live.cut(row):
                    changelog.add(*kept)
        live.write([row._replace(of=None) if row.value is None else row for row in rows], marker_now("here", 0))
        if len(changelog.records) in range(4_000, 4_100):  # and once on top of what is there
            changelog.compact(3_000 + seed)
            (await restore(place, changelog)).table.close()  # type: ignore[arg-type]
    changelog.compact(changelog.end // 2)
    restored = await restore(place, changelog)  # type: ignore[arg-type]
    assert restored.changelog_offset == changelog.end
    assert restored.table.marker() is not None
    assert _content(restored.table) == _content(live)
    assert set(restored.table.scan(keys.PIECE)) == set(live.scan(keys.PIECE))
    assert (size == 90) == any(live.scan(keys.PIECE))
    for row, number in pieces.counted(key for key, _ in live.scan(keys.PIECE)).items():
        assert number == -(-len(live.get(row) or b"") // size), "pieces of what is not in so many pieces any more"
    restored.table.close()
    live.close()
    again = Table(tmp_path / "a")
    marker = again.marker()
    assert marker is not None
    assert marker.changelog_offset == changelog.end
    again.close()


def test_the_first_fields_of_a_run_read_by_hand_are_those_of_its_schema() -> None:
    times = [-1, 0, 1, 1 << 33, 1 << 34, 1_767_000_000_000, (1 << 41) - 1, 1 << 41, 1 << 50]
    for status in ("completed", "paused", "pending", "x" * 80):
        for created in times:
            for finished in [None, *times]:
                value = encode(run_row("r", created, finished)._replace(status=status))
                first = head(value, 3)
                assert run_head(value) == (first["status"] == "paused", first["created_at"], first["finished_at"])
