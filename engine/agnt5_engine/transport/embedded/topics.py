"""The topics of the embedded log, and where each partition begins and ends."""

from __future__ import annotations

import json
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from agnt5_engine.transport.base import BadTopicError, Message, TopicInfo, TopicPartition, TopicSpec
from agnt5_engine.transport.embedded.batches import head
from agnt5_engine.transport.embedded.store import (
    Store,
    bounds_key,
    offset_bytes,
    offset_of,
    records_prefix,
    topic_key,
)

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_BOUNDS = struct.Struct(">QqQQ")  # start, time of the last record known when it was written, cleaned, kept
_LAST = b"\xff" * 8
_TAIL_BYTES = 1 << 20


class Appended(NamedTuple):
    """A batch as it was appended, kept for the readers that stand right at the end."""

    base: int
    time: int
    messages: Sequence[Message]
    size: int


class Partition:
    """One partition: its bounds in memory, and its latest batches while somebody listens.

    `start` <= `end` <= `next`: what lies before `end` is durable and can be read, `next` is what the next record gets.
    """

    __slots__ = (
        "_tail_size",
        "cleaned",
        "end",
        "kept",
        "listeners",
        "next",
        "number",
        "prefix",
        "start",
        "tail",
        "time",
        "topic",
    )

    def __init__(self, topic: Topic, number: int) -> None:
        self.topic = topic
        self.number = number
        self.prefix = records_prefix(topic.id, number)
        self.start = self.end = self.next = 0
        self.time = 0
        self.cleaned = 0  # compaction has been through everything before this offset,
        self.kept = 0  # and left this many records
        self.listeners: set[Callable[[], None]] = set()
        self.tail: deque[Appended] = deque()
        self._tail_size = 0

    def load(self, store: Store) -> None:
        """Take the bounds from what is stored."""
        self.start, self.time, self.cleaned, self.kept = 0, 0, 0, 0
        stored = store.get(bounds_key(self.topic.id, self.number))
        if stored is not None:
            self.start, self.time, self.cleaned, self.kept = _BOUNDS.unpack(stored)
        end = self.start
        entries = store.db.iter()
        entries.seek_for_prev(self.prefix + _LAST)
        if entries.valid():
            key = entries.key()
            if key.startswith(self.prefix):
                last = head(entries.value())
                end = max(end, offset_of(key) + last.span)
                self.time = max(self.time, last.time)
        else:
            store.check(entries)
        self.end = self.next = end
        self.forget()

    def save(self, batch: Any) -> None:
        batch.put(bounds_key(self.topic.id, self.number), _BOUNDS.pack(self.start, self.time, self.cleaned, self.kept))

    def key(self, offset: int) -> bytes:
        return self.prefix + offset_bytes(offset)

    def publish(self, batch: Appended) -> None:
        """The batch is durable: readers may have it."""
        self.end = batch.base + len(batch.messages)
        if self.listeners:
            self.tail.append(batch)
            self._tail_size += batch.size
            while self._tail_size > _TAIL_BYTES and len(self.tail) > 1:
                self._tail_size -= self.tail.popleft().size

    def forget(self) -> None:
        self.tail.clear()
        self._tail_size = 0

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever `end` has moved."""
        self.listeners.add(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        self.listeners.discard(listener)
        if not self.listeners:
            self.forget()


class Topic:
    __slots__ = ("cleanup", "id", "max_message_bytes", "name", "partitions", "retention_ms")

    def __init__(self, identity: int, spec: TopicSpec) -> None:
        self.id = identity
        self.name = spec.name
        self.cleanup = spec.cleanup
        self.retention_ms = spec.retention_ms
        self.max_message_bytes = spec.max_message_bytes
        self.partitions = [Partition(self, number) for number in range(spec.partitions)]

    @property
    def compacted(self) -> bool:
        return "compact" in self.cleanup

    def info(self) -> TopicInfo:
        return TopicInfo(
            self.name,
            len(self.partitions),
            {
                "cleanup.policy": self.cleanup,
                "retention.ms": str(-1 if self.retention_ms is None else self.retention_ms),
                "max.message.bytes": str(self.max_message_bytes),
                "message.timestamp.type": "LogAppendTime",
            },
        )

    def save(self, batch: Any) -> None:
        content = {
            "id": self.id,
            "partitions": len(self.partitions),
            "cleanup": self.cleanup,
            "retention_ms": self.retention_ms,
            "max_message_bytes": self.max_message_bytes,
        }
        batch.put(topic_key(self.name), json.dumps(content).encode())


class Topics:
    """All topics by name. Made by `create`, never by being written to."""

    def __init__(self, store: Store) -> None:
        self._by_name: dict[str, Topic] = {}
        self._coming: dict[str, Topic] = {}  # not durable yet: nobody may append to one that may never be
        self.listeners: set[Callable[[], None]] = set()
        """Called when topics have been made."""
        self.load(store)

    def load(self, store: Store) -> None:
        """Take everything from what is stored; partitions that are known stay the same objects."""
        known, self._by_name = self._by_name, {}
        self._coming.clear()
        for key, value in store.scan(b"t"):
            content = json.loads(value)
            spec = TopicSpec(
                key[1:].decode(),
                content["partitions"],
                content["cleanup"],
                content["retention_ms"],
                content["max_message_bytes"],
            )
            topic = known.get(spec.name) or Topic(content["id"], spec)
            self._by_name[spec.name] = topic
            for partition in topic.partitions:
                partition.load(store)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Topic | None:
        return self._by_name.get(name)

    def by_id(self) -> dict[int, Topic]:
        return {topic.id: topic for topic in self._by_name.values()}

    def partition(self, source: TopicPartition) -> Partition:
        """Raises BadTopicError when there is no such partition."""
        name, number = source
        topic = self._by_name.get(name)
        if topic is None:
            raise BadTopicError(f"topic {name!r} does not exist; make it with `agnt5 topics apply`, or publish to it")
        if not 0 <= number < len(topic.partitions):
            raise BadTopicError(f"topic {name!r} has {len(topic.partitions)} partitions, there is no {number}")
        return topic.partitions[number]

    def add(self, specs: Sequence[TopicSpec], batch: Any) -> None:
        """Add those that do not exist yet, to be shown once they are durable."""
        for spec in specs:
            check(spec)
        there = {**self._by_name, **self._coming}
        following = max((topic.id for topic in there.values()), default=0) + 1
        for spec in specs:
            if spec.name not in there:
                self._coming[spec.name] = there[spec.name] = topic = Topic(following, spec)
                topic.save(batch)
                following += 1

    def show(self) -> None:
        """What was added is durable."""
        self._by_name.update(self._coming)
        self._coming.clear()


def check(spec: TopicSpec) -> None:
    """Refuse what Kafka would refuse, so that a program moves there unchanged."""
    if not _NAME.fullmatch(spec.name) or spec.name in (".", ".."):
        raise BadTopicError(f"{spec.name!r} cannot name a topic: use 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    if spec.partitions < 1:
        raise BadTopicError(f"topic {spec.name!r} needs at least one partition, not {spec.partitions}")
    if spec.cleanup not in ("delete", "compact", "compact,delete"):
        raise BadTopicError(
            f"topic {spec.name!r} has the cleanup policy {spec.cleanup!r}; it must be delete, compact or compact,delete"
        )
