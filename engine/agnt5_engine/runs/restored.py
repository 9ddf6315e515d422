"""The rows of a changelog as a table takes them: the last of each key, and the index rows that derive from them.

It comes to what `checkpoint.derived` makes row by row, at hundreds of thousands of rows a second: nothing is looked up
in the table, and of a run's row only the first bytes are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any

from agnt5_engine.records.avro import HEADER, decode, head, header_of, schema_files
from agnt5_engine.runs import pieces, table

_RUN, _PENDING, _SESSION, _HISTORY = table.RUN[0], table.PENDING[0], table.SESSION[0], table.HISTORY[0]
_PIECE = table.PIECE[0]
_NEVER = (1 << 63) - 1
_index_key = Struct(">cq").pack


def _newest(kind: str) -> bytes:
    versions = schema_files()[kind]
    return header_of(versions[max(versions)])


_RUN_HEADER, _PENDING_HEADER = _newest("RunRow"), _newest("PendingRow")
_NO_USER = tuple(
    _PENDING_HEADER + bytes([2 * len(kind)]) + kind
    for kind in (b"step", b"sleep", b"signal", b"child", b"timeout", b"write", b"emit", b"end")
)
#: A time between 1970 and 2039, in ms, is six bytes in Avro, all but the last with the high bit set.
_MARKS = sum(0x80 << 7 * n for n in range(5))


class RestoredRows:
    """Takes changelog records in order, and gives table rows, a chunk at a time.

    `paused` and `asked` are the keys of those index families that the table holds already; `old` looks up what it holds
    under a key, where that can be done.
    """

    def __init__(
        self, paused: Iterable[bytes], asked: Iterable[bytes], old: Callable[[bytes], bytes | None] = lambda key: None
    ) -> None:
        self._old = old
        self._rows: dict[bytes, bytes | None] = {}
        self._pieces: dict[bytes, bytes] = {}  # of rows whose head is still to come
        self._paused = set(paused)
        self._asked = {key[9:]: key for key in asked}  # by the entry asked of
        self.forgotten: set[bytes] = set()
        """IDs of runs whose rows were deleted: their places in the index by creation are still to be looked for."""

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, records: Iterable[tuple[int, int, bytes | None, bytes | None, Any]]) -> None:
        rows = self._rows
        for _, _, key, value, _ in records:
            if key:
                rows[key] = value
                if key[0] == _PIECE:
                    rows.pop(pieces.row_key(key), None)  # its head comes behind them, and is to be looked at then

    def drain(self, put: Callable[[bytes, bytes], None], delete: Callable[[bytes], None]) -> None:
        """Give everything taken since the last call. Raises RecordError for a row that cannot be read."""
        rows, self._rows = self._rows, {}
        paused, nothing = self._paused, b""
        for key, value in rows.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
            family = key[0]
            if family == _PIECE:
                if value is not None:
                    self._pieces[key] = value
                continue
            if value is not None and value[:2] == pieces.MAGIC and (self._pieces or family != _HISTORY):
                value = self._joined(key, value)
                if value is None:
                    continue  # a newer one follows
            if family == _HISTORY:
                continue
            if family == _RUN:
                run_id = key[1:]
                if value is None:
                    is_paused = False
                    if (before := self._before(key)) is not None:
                        delete(_index_key(table.BY_CREATED, _NEVER - run_head(before)[1]) + run_id)
                    else:
                        self.forgotten.add(run_id)
                else:
                    is_paused, created_at, finished_at = run_head(value)
                    put(_index_key(table.BY_CREATED, _NEVER - created_at) + run_id, nothing)
                    if finished_at is not None:
                        put(_index_key(table.BY_FINISHED, finished_at) + run_id, nothing)
                if is_paused:
                    paused.add(table.PAUSED + run_id)
                    put(table.PAUSED + run_id, nothing)
                elif paused and (place := table.PAUSED + run_id) in paused:
                    paused.discard(place)
                    delete(place)
            elif family == _PENDING:
                if value is None:
                    if (old := self._asked.pop(key[1:], None)) is not None:
                        delete(old)
                elif not value.startswith(_NO_USER):
                    self._question(key[1:], value, put, delete)
            elif family == _SESSION:
                session = decode(value) if value is not None else None
                if session is not None and (session.lock_run is not None or session.queue):
                    put(table.BUSY_SESSION + key[1:], nothing)
                else:
                    delete(table.BUSY_SESSION + key[1:])

    def _before(self, key: bytes) -> bytes | None:
        value = self._old(key)
        return value if value is None or value[:2] != pieces.MAGIC else self._joined(key, value)

    def _joined(self, key: bytes, head: bytes) -> bytes | None:
        value = pieces.join(key, head, lambda piece: self._pieces.get(piece) or self._old(piece))
        for i in range(pieces.number(head)):
            self._pieces.pop(pieces.piece_key(key, i), None)
        return value

    def _question(
        self, entry: bytes, value: bytes, put: Callable[[bytes, bytes], None], delete: Callable[[bytes], None]
    ) -> None:
        first = head(value, 2)
        old = self._asked.pop(entry, None)
        place = table.asked_key(first["asked_at"], entry) if first["ask"] == "user" else None
        if old is not None and old != place:
            delete(old)
        if place is not None:
            self._asked[entry] = place
            put(place, b"")


def run_head(value: bytes) -> tuple[bool, int, int | None]:
    """Of a RunRow: whether it is paused, and its created_at and finished_at. Raises RecordError.

    Read by hand where the row is of the newest version and its times are of this age; any other by its schema.
    """
    if value[:HEADER] == _RUN_HEADER:
        size = value[HEADER]  # of the status, twice
        at = HEADER + 1 + (size >> 1)
        times = value[at : at + 13]
        if size < 0x80 and len(times) == 13:
            a, b, c, d, e, f, has, g, h, i, j, k, m = times
            if a & b & c & d & e & 0x80 and f < 0x80 and not a & 1:  # an odd one is before 1970
                created_at = (a + (b << 7) + (c << 14) + (d << 21) + (e << 28) + (f << 35) - _MARKS) >> 1
                is_paused = size == 12 and value[HEADER + 1 : at] == b"paused"
                if not has:
                    return is_paused, created_at, None
                if g & h & i & j & k & 0x80 and m < 0x80 and not g & 1:
                    finished_at = (g + (h << 7) + (i << 14) + (j << 21) + (k << 28) + (m << 35) - _MARKS) >> 1
                    return is_paused, created_at, finished_at
    first = head(value, 3)
    return first["status"] == "paused", first["created_at"], first["finished_at"]
