"""The bytes of one stored batch: a header, the records' lengths, then their keys, values and headers end to end.

Everything appended to a partition in one group commit is one batch and so carries one time. Compaction thins a batch
out: it is then *sparse* and names the offset of each record that is left. RocksDB checksums these bytes; here is only
their layout.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from agnt5_engine.transport.base import Headers, Message, Record, TransportError

_HEAD = struct.Struct("<BBIIq")  # layout, flags, count, span, time
_LAYOUT = 1
_SPARSE = 1
_HEADER = struct.Struct("<Hi")  # length of the name, length of the value
_HEADER_COUNT = struct.Struct("<H")


class BatchHead(NamedTuple):
    """What can be known of a batch without decoding its records. `span` is how many offsets it covers."""

    records: int
    span: int
    time: int


class Piece(NamedTuple):
    """Messages laid out for a batch: three lengths for each (-1: none), and the bytes."""

    messages: Sequence[Message]
    lengths: list[int]
    parts: list[bytes]
    size: int


def lay_out(messages: Sequence[Message]) -> Piece:
    lengths, parts = _flatten(messages)
    return Piece(messages, lengths, parts, sum(map(len, parts)))


def join(pieces: Sequence[Piece]) -> Piece:
    messages: list[Message] = []
    lengths: list[int] = []
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        messages += piece.messages
        lengths += piece.lengths
        parts += piece.parts
        size += piece.size
    return Piece(messages, lengths, parts, size)


def encode(time: int, piece: Piece) -> bytes:
    """A batch of consecutive offsets."""
    count = len(piece.messages)
    return b"".join((_HEAD.pack(_LAYOUT, 0, count, count, time), _int32s(piece.lengths), *piece.parts))


def encode_sparse(time: int, span: int, base: int, records: Sequence[Record]) -> bytes:
    """A batch that starts at offset `base` and of whose `span` offsets only `records` are left."""
    lengths, parts = _flatten([Message(record.key, record.value, record.headers) for record in records])
    deltas = _int32s([record.offset - base for record in records])
    return b"".join((_HEAD.pack(_LAYOUT, _SPARSE, len(records), span, time), deltas, _int32s(lengths), *parts))


def head(data: bytes) -> BatchHead:
    layout, _flags, count, span, time = _HEAD.unpack_from(data)
    if layout != _LAYOUT:
        raise TransportError(f"a stored batch has layout {layout}, this version reads {_LAYOUT}: upgrade agnt5-kafka")
    return BatchHead(count, span, time)


def decode(base: int, data: bytes) -> list[Record]:
    """The records of the batch stored at offset `base`."""
    layout, flags, count, _span, time = _HEAD.unpack_from(data)
    if layout != _LAYOUT:
        raise TransportError(f"a stored batch has layout {layout}, this version reads {_LAYOUT}: upgrade agnt5-kafka")
    at = _HEAD.size
    offsets: Sequence[int] = range(base, base + count)
    if flags & _SPARSE:
        offsets = [base + delta for delta in _read_int32s(data, at, count)]
        at += 4 * count
    lengths = iter(_read_int32s(data, at, 3 * count))
    at += 12 * count
    records: list[Record] = []
    add = records.append
    for offset, key_length, value_length, headers_length in zip(offsets, lengths, lengths, lengths, strict=True):
        key = value = None
        headers: Headers = ()
        if key_length >= 0:
            key = data[at : at + key_length]
            at += key_length
        if value_length >= 0:
            value = data[at : at + value_length]
            at += value_length
        if headers_length:
            headers = _decode_headers(data, at)
            at += headers_length
        add(Record(offset, time, key, value, headers))
    return records


def size(message: Message) -> int:
    """Bytes of a message, as compared with a topic's `max.message.bytes`."""
    key, value, headers = message
    total = (len(key) if key else 0) + (len(value) if value else 0)
    for name, content in headers:
        total += len(name) + len(content)
    return total


def _flatten(messages: Sequence[Message]) -> tuple[list[int], list[bytes]]:
    lengths: list[int] = []
    parts: list[bytes] = []
    length, part = lengths.append, parts.append
    for key, value, headers in messages:
        if key is None:
            length(-1)
        else:
            length(len(key))
            part(key)
        if value is None:
            length(-1)
        else:
            length(len(value))
            part(value)
        if headers:
            encoded = _encode_headers(headers)
            length(len(encoded))
            part(encoded)
        else:
            length(0)
    return lengths, parts


def _encode_headers(headers: Headers) -> bytes:
    parts = [_HEADER_COUNT.pack(len(headers))]
    for name, value in headers:
        encoded = name.encode()
        parts += (_HEADER.pack(len(encoded), len(value)), encoded, value)
    return b"".join(parts)


def _decode_headers(data: bytes, at: int) -> Headers:
    (count,) = _HEADER_COUNT.unpack_from(data, at)
    at += _HEADER_COUNT.size
    headers = []
    for _ in range(count):
        name_length, value_length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        name = data[at : at + name_length].decode()
        at += name_length
        headers.append((name, data[at : at + value_length]))
        at += value_length
    return tuple(headers)


def _int32s(values: list[int]) -> bytes:
    packed = array("i", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _read_int32s(data: bytes, at: int, count: int) -> array[int]:
    values = array("i")
    values.frombytes(data[at : at + 4 * count])
    if sys.byteorder == "big":
        values.byteswap()
    return values
