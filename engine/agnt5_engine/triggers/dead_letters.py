"""Dead letters: records that could not be decoded, bound or applied, put aside whole and with the reason.

A letter's value is the original's value, its record key the original's place ("topic/partition/offset"). The rest is
in headers: `agnt5-reason`, `agnt5-detail`, `agnt5-topic`, `agnt5-partition`, `agnt5-offset`, `agnt5-time` (the
original's, ms), `agnt5-workflow` (when only one workflow could not take it), `agnt5-key` (when it had one), and each of
the original's headers as `original-NAME`. A letter's ID is "PARTITION-OFFSET", its own place in the topic.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from agnt5.client.models import DeadLetter, at, shown, shown_key
from agnt5_engine.records.avro import RecordError, decode
from agnt5_engine.records.journal import RunOutcome
from agnt5_engine.records.routing import partition_of
from agnt5_engine.transport.base import Log, Message, OffsetGoneError, Record, TooLargeError, TopicPartition

UNDECODABLE = "undecodable"
"""The bytes are not what they should be."""
UNBOUND = "unbound"
"""The value does not fit the workflow's parameters."""
TRIGGER_FAILED = "trigger_failed"
"""The workflow's own code (a trigger's `filter`, `session` or `user`, a validator of a parameter) raised."""
TOO_LARGE = "too_large"
"""The input is larger than AGNT5_MAX_PAYLOAD_BYTES."""

_DETAIL = 2000
_ID = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,17})")


class Letter(NamedTuple):
    """One record put aside. `workflow` None: no workflow, or none in particular."""

    reason: str
    detail: str
    source: TopicPartition
    record: Record
    workflow: str | None = None
    omitted: int | None = None
    """Size of a value too large for the dead-letters topic, which holds the letter without it."""


def message(letter: Letter) -> Message:
    """The letter as it is written."""
    record = letter.record
    topic, partition = letter.source
    headers = [
        ("agnt5-reason", letter.reason.encode()),
        ("agnt5-detail", letter.detail[:_DETAIL].encode(errors="replace")),
        ("agnt5-topic", topic.encode()),
        ("agnt5-partition", b"%d" % partition),
        ("agnt5-offset", b"%d" % record.offset),
        ("agnt5-time", b"%d" % record.time),
    ]
    if letter.workflow is not None:
        headers.append(("agnt5-workflow", letter.workflow.encode()))
    if record.key is not None:
        headers.append(("agnt5-key", record.key))
    if letter.omitted is not None:
        headers.append(("agnt5-omitted", b"%d" % letter.omitted))
    headers += [(f"original-{name}", value) for name, value in record.headers]
    key = f"{topic}/{partition}/{record.offset}".encode()
    return Message(key, None if letter.omitted is not None else record.value, tuple(headers))


def letter_of(topic: str, stored: TopicPartition, record: Record) -> Letter:
    """The letter in a record of the dead-letters topic, whoever wrote it. What its headers do not say is taken from
    where it stands."""
    ours: dict[str, bytes] = {}
    original: list[tuple[str, bytes]] = []
    for name, value in record.headers:
        if name.startswith("original-"):
            original.append((name.removeprefix("original-"), value))
        else:
            ours[name] = value

    def text(name: str, default: str) -> str:
        found = ours.get(name)
        return default if found is None else found.decode(errors="replace")

    def number(name: str, default: int) -> int:
        found = ours.get(name, b"")
        return int(found) if found.isdigit() and len(found) < 20 else default

    known = "agnt5-topic" in ours
    source = TopicPartition(text("agnt5-topic", topic), number("agnt5-partition", stored.partition))
    time = number("agnt5-time", record.time)
    key = ours.get("agnt5-key") if known else record.key
    put = Record(number("agnt5-offset", record.offset), time, key, record.value, tuple(original))
    workflow = ours.get("agnt5-workflow")
    return Letter(
        text("agnt5-reason", "unknown"),
        text("agnt5-detail", ""),
        source,
        put,
        workflow.decode(errors="replace") if workflow is not None else None,
        number("agnt5-omitted", 0) or None,
    )


class StoredLetter(NamedTuple):
    """A letter and where it stands in the dead-letters topic."""

    time: int
    partition: int
    offset: int
    letter: Letter

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"

    def view(self) -> DeadLetter:
        """As the API shows it."""
        letter = self.letter
        return DeadLetter(
            id=self.id,
            reason=letter.reason,
            detail=letter.detail if letter.workflow is None else f"workflow {letter.workflow}: {letter.detail}",
            topic=letter.source.topic,
            partition=letter.source.partition,
            offset=letter.record.offset,
            key=shown_key(letter.record.key),
            value=_shown_value(letter),
            time=at(self.time),
        )


def _shown_value(letter: Letter) -> object:
    if letter.omitted is not None:
        return f"({letter.omitted} bytes, still at {letter.source.topic}/{letter.source.partition})"
    value = letter.record.value
    if value is not None and value[:2] == b"\xc3\x01":
        try:
            record = decode(value)
        except RecordError:
            return shown(value)
        if isinstance(record, RunOutcome):
            return record._asdict() | {"input": shown(record.input), "output": shown(record.output)}
        fields = {n: shown(v) if isinstance(v, bytes) else v for n, v in record._asdict().items()}
        return {"record": type(record).__name__, **fields}
    return shown(value)


class DeadLetters:
    """The dead-letters topic: `topic` with `partitions` partitions, in `log`."""

    def __init__(self, log: Log, topic: str, partitions: int) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions

    async def put(self, letters: Sequence[Letter]) -> None:
        """Returns when all of them are durable. Raises RetriableError; they are then to be put again."""
        batches: dict[int, list[Letter]] = {}
        for letter in letters:
            place = f"{letter.source.topic}/{letter.source.partition}/{letter.record.offset}"
            batches.setdefault(partition_of(place, self._partitions), []).append(letter)
        for partition, batch in batches.items():
            target = TopicPartition(self._topic, partition)
            try:
                await self._log.append(target, [message(letter) for letter in batch])
            except TooLargeError:
                for letter in batch:
                    await self._put_one(target, letter)

    async def _put_one(self, target: TopicPartition, letter: Letter) -> None:
        try:
            await self._log.append(target, [message(letter)])
        except TooLargeError:
            size = len(letter.record.value or b"")
            bare = letter.record._replace(headers=())
            await self._log.append(target, [message(letter._replace(omitted=size or 1, record=bare))])

    # ------------------------------------------------------------------ reading

    async def find(self, letter_id: str) -> StoredLetter:
        """Raises LookupError."""
        match = _ID.fullmatch(letter_id)
        if match is None or int(match[1]) >= self._partitions:
            raise LookupError(f"there is no dead letter {letter_id!r}: an ID is PARTITION-OFFSET, such as 0-17")
        source, offset = TopicPartition(self._topic, int(match[1])), int(match[2])
        start, end = await self._log.bounds(source)
        if start <= offset < end:
            async for stored in self._read(source, offset, offset + 1):
                return stored
        raise LookupError(f"there is no dead letter {letter_id!r} (any more)")

    async def list(self, limit: int = 100, after: str | None = None) -> list[StoredLetter]:
        """Oldest first; only those after the letter with ID `after`. Raises LookupError when that is not there."""
        floor = (-1, -1, -1)
        if after is not None:
            last = await self.find(after)
            floor = (last.time, last.partition, last.offset)
        found: list[StoredLetter] = []
        for partition in range(self._partitions):
            source = TopicPartition(self._topic, partition)
            start, end = await self._log.bounds(source)
            if floor[0] >= 0:
                start = max(start, await self._log.offset_at(source, floor[0]))
            count = 0
            async for stored in self._read(source, start, end):
                if (stored.time, stored.partition, stored.offset) <= floor:
                    continue
                found.append(stored)
                count += 1
                if count == limit:
                    break
        found.sort(key=lambda s: (s.time, s.partition, s.offset))
        return found[:limit]

    async def _read(self, source: TopicPartition, start: int, end: int) -> AsyncIterator[StoredLetter]:
        if start >= end:
            return
        async for batch in self._log.read(source, start, end):
            for record in batch.records:
                if start <= record.offset < end:
                    letter = letter_of(self._topic, source, record)
                    yield StoredLetter(record.time, source.partition, record.offset, letter)

    async def original(self, letter: Letter) -> Record:
        """The record as it was, to be sent in again. Raises LookupError when its value was too large to be kept here
        and is no longer in its own topic."""
        if letter.omitted is None:
            return letter.record
        source, offset = letter.source, letter.record.offset
        gone = LookupError(f"{source.topic}/{source.partition} no longer holds offset {offset}, nor does the letter")
        try:
            start, end = await self._log.bounds(source)
            if not start <= offset < end:
                raise gone
            async for batch in self._log.read(source, offset, offset + 1):
                for record in batch.records:
                    if record.offset == offset:
                        return record
        except OffsetGoneError:
            raise gone from None
        raise gone
