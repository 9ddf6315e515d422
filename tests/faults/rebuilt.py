"""What the processors left behind, held against the log: tables against changelog, and both against the journal."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agnt5 import registry
from agnt5_engine.partition.table import Table
from agnt5_engine.records.avro import decode
from agnt5_engine.records.rows import MarkerRow
from agnt5_engine.runs import history, table
from agnt5_engine.runs.apply import apply
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.transport.base import Record, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import everything, plain
from tests.runs.snapshots import Snapshot, differences, snapshot

_PRIMARY = (
    table.RUN, table.HISTORY, table.PENDING, table.SESSION, table.USER, table.OUTBOX, table.EARLY_CANCEL,
    table.SCHEDULE, table.MARKER,
)  # fmt: skip
_RETENTION_MS = 7 * 86_400_000


class _Code:
    """The workflows that are loaded here."""

    max_payload = 2**20

    def workflow(self, name: str) -> Any:
        return registry.workflows().get(name)


async def judged(bootstrap: str, prefix: str, partitions: int, folder: Path) -> list[str]:
    """All that is wrong with what stopped processors left in `folder` and in the topics of `prefix`. The code of their
    workflows must be loaded."""
    bad: list[str] = []
    log = KafkaLog(plain(bootstrap), patience=60)
    try:
        for p in range(partitions):
            journal = await everything(log, TopicPartition(f"{prefix}journal", p))
            changelog = await everything(log, TopicPartition(f"{prefix}state-changelog", p))
            with _latest(folder, f"{prefix}journal", p) as live:
                bad += [f"partition {p}: {what}" for what in _compared(live, journal, changelog)]
    finally:
        await log.close()
    return bad


@contextlib.contextmanager
def _latest(folder: Path, journal: str, partition: int) -> Iterator[Table]:
    """The table of the partition's last owner. Those of earlier ones have stood still since."""
    tables = [Table(path) for path in folder.glob(f"*/slots/*/tables/{journal}/{partition}")]
    try:
        followed = [(marker.changelog_offset, t) for t in tables if (marker := t.marker()) is not None]
        yield max(followed, key=lambda found: found[0])[1]
    finally:
        for t in tables:
            t.close()


def _compared(live: Table, journal: list[Record], changelog: list[Record]) -> Iterator[str]:
    rows = {key: value for family in _PRIMARY for key, value in live.scan(family)}
    followed = live.marker()
    assert followed is not None
    # All of it, unless the last owner was cut short in its last checkpoint.
    logged = {r.key: r.value for r in changelog if r.key is not None and r.offset < followed.changelog_offset}
    yield from _differing("changelog", rows, {key: value for key, value in logged.items() if value is not None})
    marker: MarkerRow = decode(rows[table.MARKER])
    stored = _state(live, marker)
    with tempfile.TemporaryDirectory() as empty:
        nothing = Table(Path(empty) / "table")
        again = _state(nothing)
        for record in journal:
            if record.offset <= marker.applied:
                apply(again, record.offset, record.time, decode(record.value or b""))
                again.effects.clear()
        known, derived = snapshot(stored), snapshot(again)
        if known != derived:
            yield f"the journal from offset 0 on comes to another state: {differences(known, derived)}"
        yield from _twice(known)
        for run in again.runs.values():
            drop_activation(run)
        nothing.close()


def _state(rows: Table, marker: MarkerRow | None = None) -> PartitionState:
    if marker is None:
        return PartitionState(rows, _Code(), retention_ms=_RETENTION_MS)
    return PartitionState(
        rows, _Code(), retention_ms=_RETENTION_MS, applied=marker.applied, claim=marker.claim, now=marker.now
    )


def _differing(name: str, rows: dict[bytes, bytes], others: dict[bytes, bytes]) -> Iterator[str]:
    keys = [key for key in rows.keys() | others.keys() if rows.get(key) != others.get(key)]
    if keys:
        yield f"{len(keys)} of {len(rows)} rows differ from the {name}, {min(keys)!r} first"


def _twice(known: Snapshot) -> Iterator[str]:
    """No entry of a history is completed twice."""
    for name, row in known.items():
        if name.startswith("run "):
            done = Counter(h.path for h in row.history if h.event == history.RESOLVED)
            if more := [path for path, count in done.items() if count > 1]:
                yield f"{name}: entries {more} are completed more than once"
