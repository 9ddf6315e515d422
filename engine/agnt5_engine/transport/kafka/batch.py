"""Records as Kafka stores them: building a batch to send, taking fetched batches apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from agnt5_engine.transport.base import Batch, Message, Record, TransportError

# The most that goes into one batch, unless a single record is larger. Kafka's default `max.message.bytes` is 1,048,588
# for the whole batch, so this fits any topic that was not made stricter (those are found out, see produce.py).
BATCH_BYTES = 1_000_000


class Producing(NamedTuple):
    """Who writes: what Kafka tells repeated and fenced batches by."""

    producer: int
    epoch: int


NOBODY = Producing(-1, -1)


class BatchWriter:
    """One batch being filled."""

    __slots__ = ("_append", "_builder", "_time", "count")

    def __init__(
        self, who: Producing, sequence: int, time: int, *, transactional: bool = False, limit: int = BATCH_BYTES
    ) -> None:
        self._builder = DefaultRecordBatchBuilder(2, 0, int(transactional), who.producer, who.epoch, sequence, limit)
        self._append = self._builder.append
        self._time = time
        self.count = 0

    def add(self, messages: Sequence[Message], start: int) -> int:
        """Add messages from index `start` on; returns the index of the first that no longer fits."""
        append, time, count = self._append, self._time, self.count
        for index in range(start, len(messages)):
            key, value, headers = messages[index]
            if append(count, time, key, value, list(headers)) is None:
                self.count = count
                return index
            count += 1
        self.count = count
        return len(messages)

    def bytes(self) -> bytearray:
        data: bytearray = self._builder.build()
        return data


def next_sequence(sequence: int, count: int) -> int:
    """Kafka's sequence numbers go round after 2^31 - 1."""
    return (sequence + count) & 0x7FFFFFFF


def records_of(data: bytes, aborted: Sequence[tuple[int, int]] | None, position: int, end: int) -> Batch:
    """The committed records of a fetched piece of log, from `position` up to `end` (exclusive), and the position after
    it: past control records, aborted records and what compaction has removed.

    `aborted` are the (producer, first offset) pairs that came with it. Raises TransportError for damaged bytes.
    """
    coming = sorted(aborted or (), key=lambda pair: pair[1])
    inside: set[int] = set()  # producers in the middle of an aborted transaction
    found: list[Record] = []
    add, new = found.append, tuple.__new__  # half the time of calling Record
    batches: Any = MemoryRecords(data)
    at = stop = 0
    while batches.has_next():
        batch = batches.next_batch()
        at, stop = stop, stop + 12 + int.from_bytes(data[stop + 8 : stop + 12], "big")
        if not batch.validate_crc():
            raise TransportError(
                f"the log is damaged in the batch at offset {batch.base_offset}: its checksum is wrong"
            )
        following = batch.next_offset
        if following <= position:
            continue
        producer = batch.producer_id
        if producer is not None:
            while coming and coming[0][1] <= batch.base_offset:
                inside.add(coming.pop(0)[0])
            if batch.is_control_batch:
                if ControlRecord.parse(next(batch).key) == ABORT_MARKER:
                    inside.discard(producer)
                position = following
                continue
            if batch.is_transactional and producer in inside:
                position = following
                continue
        try:
            records = list(batch)
        except (UnicodeDecodeError, CorruptRecordException):
            records = _with_readable_names(data[at:stop])
        for record in records:
            offset = record.offset
            if offset >= position:
                if offset >= end:
                    return Batch(found, end)
                headers = record.headers
                add(
                    new(Record, (offset, record.timestamp, record.key, record.value, tuple(headers) if headers else ()))
                )
        position = following
    return Batch(found, min(position, end) if position > end else position)


def _with_readable_names(batch: bytes) -> list[Any]:
    """The records of a batch in which the name of a header is not UTF-8, which Kafka lets any producer write: with a
    "?" for each byte that is not ASCII. Raises aiokafka's CorruptRecordException when something else is wrong."""
    records: Any = _DefaultRecordBatchPy(batch)
    iter(records)  # unpacks it
    data, at = records._buffer, records._pos
    for _ in range(records._num_records):
        _, at = decode_varint(data, at)
        at += 1  # attributes
        for _ in ("time", "offset"):
            _, at = decode_varint(data, at)
        for _ in ("key", "value"):
            size, at = decode_varint(data, at)
            at += max(size, 0)
        headers, at = decode_varint(data, at)
        for _ in range(headers):
            size, at = decode_varint(data, at)
            name = bytes(data[at : at + size])
            try:
                name.decode()
            except UnicodeDecodeError:
                data[at : at + size] = name.decode("ascii", "replace").encode("ascii", "replace")
            size, at = decode_varint(data, at + size)
            at += max(size, 0)
    return list(records)
