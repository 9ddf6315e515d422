"""Rows that are larger than one message of the changelog may be, in pieces.

Most of what a row holds has a limit of its own, but not all that may come together in one: what a run read in one
stretch of its code, what waits for a parked run. So a large row is cut up. Its pieces stand under keys of their own, in
front of it, and its own value is a head that says what they add up to. Changelog and local table hold the same.

Where a row has been written again, compaction may take its old pieces away before their head. Whoever restores passes
such a head over: the newer row follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from zlib import crc32

from agnt5_engine.runs import table

#: Bytes of a piece. With what is around it, it fits into every changelog that `topics.specs` asks for.
SIZE = 512 * 1024
#: How a head begins; Avro is C3 01, a sealed value C3 02.
MAGIC = b"\xc3\x03"
_HEAD = Struct(">2sIQI")  # MAGIC, number of pieces, bytes in all, their CRC-32

Pair = tuple[bytes, bytes | None]


def piece_key(key: bytes, number: int) -> bytes:
    return table.PIECE + key + number.to_bytes(4, "big")


def row_key(piece: bytes) -> bytes:
    """The key of the row that a piece is of."""
    return piece[1:-4]


def cut(key: bytes, value: bytes | None, before: int) -> list[Pair]:
    """What is written for a row that was in `before` pieces; under its own key comes last. `value` None: deleted."""
    pieces: list[Pair] = []
    if value is not None and len(value) > SIZE:
        pieces = [(piece_key(key, i), value[at : at + SIZE]) for i, at in enumerate(range(0, len(value), SIZE))]
        value = _HEAD.pack(MAGIC, len(pieces), len(value), crc32(value))
    pieces += [(piece_key(key, i), None) for i in range(len(pieces), before)]
    return [*pieces, (key, value)]


def number(head: bytes) -> int:
    """How many pieces there are."""
    found: int = _HEAD.unpack(head)[1]
    return found


def join(key: bytes, head: bytes, get: Callable[[bytes], bytes | None]) -> bytes | None:
    """The row's value; None when its pieces are not all there, or not its own."""
    _, parts, size, checksum = _HEAD.unpack(head)
    value = b"".join(get(piece_key(key, i)) or b"" for i in range(parts))
    return value if len(value) == size and crc32(value) == checksum else None


def counted(pieces: Iterable[bytes]) -> dict[bytes, int]:
    """How many pieces each row has, by the keys of them all."""
    found: dict[bytes, int] = {}
    for piece in pieces:
        key = row_key(piece)
        found[key] = max(found.get(key, 0), int.from_bytes(piece[-4:], "big") + 1)
    return found
