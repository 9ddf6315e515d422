"""What the simulated partitions live on: a journal that stamps times, a changelog that compacts, a local table."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.rows import MarkerRow
from agnt5_engine.runs import table
from agnt5_engine.runs.checkpoint import Row, derived
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.state import Code, PartitionState

RETENTION_MS = 7 * 86_400_000

_states: list[PartitionState] = []


def state_of(store: Store, code: Code) -> PartitionState:
    """A partition's state as recovery begins with it."""
    marker = store.marker
    state = PartitionState(
        store,
        code,
        retention_ms=RETENTION_MS,
        applied=marker.applied if marker is not None else -1,
        claim=marker.claim if marker is not None else -1,
        now=marker.now if marker is not None else 0,
    )
    _states.append(state)
    return state


def evict(state: PartitionState) -> None:
    """Its runs leave memory: without this, coroutines that are dropped half way would run their clean-up."""
    for run in state.runs.values():
        drop_activation(run)


def evict_all() -> None:
    """Of every state there was."""
    for state in _states:
        evict(state)
    _states.clear()


class Logged(NamedTuple):
    """A record in a journal."""

    time: int
    record: Any


class Store:
    """Rows in key order, as the local table keeps them."""

    def __init__(self, other: Store | None = None) -> None:
        self.values: dict[bytes, bytes] = dict(other.values) if other is not None else {}
        self.keys: list[bytes] = list(other.keys) if other is not None else []

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def scan(self, prefix: bytes, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        at = bisect_left(self.keys, prefix) if after is None or after < prefix else bisect_right(self.keys, after)
        for key in self.keys[at:]:
            if not key.startswith(prefix):
                break
            yield key, self.values[key]

    def write(self, rows: Iterable[Row]) -> None:
        """As `partition.table.Table`: derived rows first, as of the values that the whole batch finds."""
        changes: list[Row] = []
        for row in rows:
            changes += derived(row, self.get)
            changes.append(row)
        for key, value, _ in changes:
            if value is None:
                if self.values.pop(key, None) is not None:
                    del self.keys[bisect_left(self.keys, key)]
            else:
                if key not in self.values:
                    insort(self.keys, key)
                self.values[key] = value

    @property
    def marker(self) -> MarkerRow | None:
        data = self.values.get(table.MARKER)
        return decode(data) if data is not None else None


class Changelog:
    """A compacted topic. A transaction lands whole; one of an owner that has been fenced never does."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Row]] = []
        self.end = 0
        self.epoch = 0
        self.dropped = 0  # tombstones before this offset may be gone

    def fence(self) -> int:
        """A new owner comes: what those before it still write is refused."""
        self.epoch += 1
        return self.epoch

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append((self.end, row))
            self.end += 1

    def compact(self, r: random.Random) -> None:
        """Of the rows before a random point, keep each key's newest; its tombstones perhaps."""
        cut = r.randint(0, len(self.rows))
        newest = {row.key: offset for offset, row in self.rows}
        kept = []
        for i, (offset, row) in enumerate(self.rows):
            if i >= cut or (newest[row.key] == offset and not (row.value is None and r.random() < 0.5)):
                kept.append((offset, row))
            elif row.value is None:
                self.dropped = max(self.dropped, offset + 1)
        self.rows = kept

    def restore(self, local: Store | None = None, position: int = 0) -> Store:
        """The table as of the end; on top of a local one that followed up to `position`, when that can be."""
        if local is None or position < self.dropped:
            store, position = Store(), 0
        else:
            store = Store(local)
        # The last row of each key, as `restored.py` takes them.
        store.write({row.key: row for offset, row in self.rows if offset >= position}.values())
        return store


class Journal:
    """One partition's log. Its clock may step back; records tell of the running maximum."""

    def __init__(self) -> None:
        self.records: list[Logged] = []

    def append(self, time: int, record: Any) -> int:
        # As bytes, since that is what is read back.
        self.records.append(Logged(time, decode(encode(record))))
        return len(self.records) - 1

    def __len__(self) -> int:
        return len(self.records)
