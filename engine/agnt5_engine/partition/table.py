"""The local RocksDB table of one partition: a cache of the changelog, never the truth (invariant 14).

What it holds is as of one checkpoint. Its own marker says which changelog offset it covers, of which cluster, written
when.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    MemtableFactory,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from agnt5_engine.records.avro import RecordError
from agnt5_engine.runs import pieces
from agnt5_engine.runs.checkpoint import Row, derived
from agnt5_engine.runs.restored import RestoredRows
from agnt5_engine.runs.table import BY_ASKED, BY_CREATED, PAUSED, PIECE
from agnt5_engine.transport.embedded.store import NO_ROOM

_LOCAL_MARKER = b"M"
_FORMAT = 1

#: One block cache for all partitions of the process.
_CACHE = Cache(64 * 1024 * 1024)

_UNLOGGED = WriteOptions()
_UNLOGGED.disable_wal = True


class NoRoomError(Exception):
    """The disk that holds the table is full. Opening the table anew goes on from what is on the disk."""


class LocalMarker(NamedTuple):
    """Up to where the table follows the changelog."""

    cluster_id: str
    changelog_offset: int
    written_at: float  # seconds since the epoch


def _options(*, filling: bool = False) -> Options:
    blocks = BlockBasedOptions()
    blocks.set_block_cache(_CACHE)
    blocks.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(8 * 1024 * 1024)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    if filling:
        # Rows are put in order when they go to disk, in the background, rather than one by one; nobody reads meanwhile.
        options.set_memtable_factory(MemtableFactory.vector())
        options.set_allow_concurrent_memtable_write(False)
        options.set_write_buffer_size(32 * 1024 * 1024)
        options.set_max_write_buffer_number(4)
    return options


class Table:
    """Rows by key. Reads see the last `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._room():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._open(path)
        self._filling = False
        self._pieces: dict[bytes, int] | None = None  # how many a row is in; None: to be counted
        self._scans: WeakSet[Generator[tuple[bytes, bytes], None, None]] = WeakSet()

    @staticmethod
    def _open(path: Path, *, filling: bool = False) -> Rdict:
        def open_() -> Rdict:
            # Unless it is named, a column family keeps the options it was made with.
            families = {"default": _options(filling=filling)}
            return Rdict(str(path), _options(filling=filling), families, AccessType.read_write())

        try:
            return open_()
        except Exception as e:
            if "lock" in str(e).lower() or _is_full(e):
                raise
            # Damaged: it is only a cache. The changelog brings everything back.
            shutil.rmtree(path)
            return open_()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """RocksDB's word for a full disk as ours. Raises NoRoomError."""
        try:
            yield
        except Exception as e:
            if not _is_full(e):
                raise
            raise NoRoomError(
                f"no room left on the disk that holds {self.path}. Nothing is lost, Kafka has it all; free some space, "
                f"and the partition goes on by itself. ({e})"
            ) from e

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value if value is None or value[:2] != pieces.MAGIC else self._whole(key, value)

    def _whole(self, key: bytes, head: bytes) -> bytes:
        if key[:1] == PIECE:
            return head  # a piece may begin with anything
        value = pieces.join(key, head, self._db.get)
        if value is None:
            raise RecordError(f"a row of {self.path} is not whole: {key!r}")
        return value

    def scan(self, prefix: bytes, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        scan = self._scan(prefix, after)
        self._scans.add(scan)
        return scan

    def _scan(self, prefix: bytes, after: bytes | None) -> Generator[tuple[bytes, bytes], None, None]:
        start = prefix if after is None or after < prefix else after + b"\0"
        bound = ReadOptions()
        end = _successor(prefix)
        if end is not None:
            bound.set_iterate_upper_bound(end)
        for key, value in self._db.items(from_key=start, read_opt=bound):
            if not key.startswith(prefix):
                break
            yield key, value if value[:2] != pieces.MAGIC else self._whole(key, value)

    def cut(self, row: Row) -> Sequence[pieces.Pair]:
        """What is kept of the row, here and in the changelog: itself, or its pieces and their head. The same until the
        next `write`."""
        if self._pieces is None:
            self._pieces = pieces.counted(key for key, _ in self.scan(PIECE))
        key, value, _ = row
        if (value is None or len(value) <= pieces.SIZE) and key not in self._pieces:
            return ((key, value),)
        return pieces.cut(key, value, self._pieces.get(key, 0))

    def write(self, rows: Iterable[Row], marker: LocalMarker) -> None:
        """The rows, what derives from them, and the marker, in one batch."""
        batch = WriteBatch(raw_mode=True)
        recut: list[pieces.Pair] = []
        for row in rows:
            for d in derived(row, self.get):
                _put(batch, d.key, d.value)
            kept = self.cut(row)
            for key, value in kept:
                _put(batch, key, value)
            recut += kept[:-1]
        batch.put(_LOCAL_MARKER, _marker_bytes(marker))
        with self._room():
            self._db.write(batch)
        if self._pieces is not None:
            for key, _ in recut:
                self._pieces.pop(pieces.row_key(key), None)
            self._pieces |= pieces.counted(key for key, value in recut if value is not None)

    def marker(self) -> LocalMarker | None:
        data = self._db.get(_LOCAL_MARKER)
        if data is None:
            return None
        body = json.loads(data)
        if body.pop("format") != _FORMAT:
            return None
        return LocalMarker(**body)

    def restoring(self) -> RestoredRows:
        """What takes rows of the changelog for this table, and derives the index from them."""
        paused, asked = ([key for key, _ in self.scan(family)] for family in (PAUSED, BY_ASKED))
        return RestoredRows(paused, asked, lambda key: None if self._filling else self._db.get(key))

    def begin_filling(self) -> None:
        """Make ready for many rows: until `end_filling` nothing is to be read, and what is written is lost with the
        process (always the latest, so that the marker stays true)."""
        with self._room():
            self._db.close()
            self._db = self._open(self.path, filling=True)
        self._filling = True

    def batch(self, rows: RestoredRows, marker: LocalMarker) -> WriteBatch:
        """What was taken, and the marker, ready for `put`."""
        batch = WriteBatch(raw_mode=True)
        rows.drain(batch.put, batch.delete)
        batch.put(_LOCAL_MARKER, _marker_bytes(marker))
        return batch

    def put(self, batch: WriteBatch) -> None:
        """Write it. May be called in another thread, one at a time."""
        with self._room():
            self._db.write(batch, _UNLOGGED if self._filling else None)
        self._pieces = None

    def end_filling(self) -> None:
        """Everything on disk, and open for reading again. Takes a moment: for another thread."""
        if self._filling:
            with self._room():
                self._db.flush()
                self._db.close()
                self._filling = False
                self._db = self._open(self.path)

    def forget_created(self, run_ids: set[bytes]) -> None:
        """Remove the places of deleted runs from the index by creation."""
        if run_ids:
            batch = WriteBatch(raw_mode=True)
            for key, _ in self.scan(BY_CREATED):
                if key[9:] in run_ids:
                    batch.delete(key)
            with self._room():
                self._db.write(batch)

    def clear(self) -> None:
        """Forget everything: what is here does not follow from this changelog."""
        with self._room():
            self._db.close()
            shutil.rmtree(self.path)
            self._db = self._open(self.path)
        self._pieces = None

    def close(self) -> None:
        # RocksDB keeps its lock as long as anybody, an exception's traceback perhaps, holds an iterator.
        for scan in list(self._scans):
            scan.close()
        with contextlib.suppress(Exception):  # after a failed write RocksDB may refuse; the changelog has it all
            self._db.close()


def _is_full(error: Exception) -> bool:
    return any(sign in str(error) for sign in NO_ROOM)


def _marker_bytes(marker: LocalMarker) -> bytes:
    return json.dumps({"format": _FORMAT, **marker._asdict()}).encode()


def marker_now(cluster_id: str, changelog_offset: int) -> LocalMarker:
    return LocalMarker(cluster_id, changelog_offset, time.time())


def _put(batch: WriteBatch, key: bytes, value: bytes | None) -> None:
    if value is None:
        batch.delete(key)
    else:
        batch.put(key, value)


def _successor(prefix: bytes) -> bytes | None:
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None
