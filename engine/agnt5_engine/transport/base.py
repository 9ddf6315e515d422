"""What the engine needs of a log, whoever keeps it: Kafka or a directory.

`kafka/` and `embedded/` each implement these protocols, in modules of the same names: `log`, `checkpoint`, `consumer`,
`topics`. What is above them (`partition/`, `triggers/`, `gateway/`) is written against this module; two places know
Kafka itself, the worker of a queue (`queues/worker.py`) and the supervisor that takes a place out of the group
(`cli/processor.py`). Times are milliseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from agnt5.replay.making import maker

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Record(NamedTuple):
    """One record as read from a log."""

    offset: int
    time: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Message(NamedTuple):
    """One record as given to a log."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


make_message = maker(Message)


class Ack(NamedTuple):
    """Where a batch landed: its first offset and, on a LogAppendTime topic, the broker's time for all of it."""

    offset: int
    time: int


class Batch(NamedTuple):
    """Records in offset order, and where the reader stands after them (past control records and gaps)."""

    records: list[Record]
    next_offset: int


class TransportError(Exception):
    """The log could not do what was asked."""


class RetriableError(TransportError):
    """Not now: the broker is away or the connection broke. Whether an append landed is unknown."""


class FencedError(TransportError):
    """A later owner has taken this partition; this one must stop."""


class OffsetGoneError(TransportError):
    """The log no longer (or not yet) holds the offset asked for."""


class TooLargeError(TransportError):
    """The record is larger than the log takes."""


class BadTopicError(TransportError):
    """No such topic, or a name or setting the log refuses. The message says the remedy."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the engine wants it."""

    name: str
    partitions: int
    cleanup: str  # "delete" | "compact" | "compact,delete"
    retention_ms: int | None  # None: for ever
    max_message_bytes: int
    log_append_time: bool = False  # cannot do without; every topic of the engine is made so


class TopicInfo(NamedTuple):
    """A topic as it is. `config` holds the log's own names (`cleanup.policy`, `retention.ms`, ...)."""

    name: str
    partitions: int
    config: Mapping[str, str]


class Checkpointer(Protocol):
    """Fenced transactions for one owned partition: rows and marker to the changelog, group offset of the journal."""

    async def open(self) -> None:
        """Fence every earlier owner of the partition (InitProducerId). Call before reading the changelog."""
        ...

    async def write(self, rows: Sequence[Message], journal: TopicPartition, next_offset: int) -> int:
        """One transaction: the rows (the marker among them, last) and the group's offset. Returns the changelog
        offset just past the last row. Raises FencedError when a later owner has opened, and writes nothing then."""
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    """A set of partitioned topics: append, read, inspect."""

    async def append(self, target: TopicPartition, messages: Sequence[Message]) -> Ack:
        """Append as one batch where it fits, idempotently, and return when it is durable (acks=all / fsync).

        Appends to one partition from one caller land in call order. A batch larger than the log takes at once is
        split, and others' records may land between its parts: the returned offset is the first record's. Whoever
        counts on from it keeps its batches smaller than that, as `partition/appender.py` does.
        """
        ...

    def read(self, source: TopicPartition, start: int, end: int) -> AsyncIterator[Batch]:
        """Read committed records from `start` until the position reaches `end` (exclusive). Bulk, for recovery.
        Raises OffsetGoneError when `start` is before the log's start."""
        ...

    async def bounds(self, source: TopicPartition) -> tuple[int, int]:
        """(first available offset, last stable offset): `read` up to the second number returns everything committed."""
        ...

    async def committed(self, group: str, source: TopicPartition) -> int | None: ...

    async def offset_at(self, source: TopicPartition, time: int) -> int:
        """The first offset whose record time is at or after `time`, else the end."""
        ...

    def checkpointer(self, transactional_id: str, group: str, changelog: TopicPartition) -> Checkpointer: ...

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        """The topics that exist (of `names`, or all)."""
        ...

    async def create(self, specs: Sequence[TopicSpec], replication: int | None) -> None:
        """Create topics; one that exists is left as it is. `replication` None: 3, or as many as there are brokers."""
        ...

    async def cluster_id(self) -> str:
        """Stable name of this cluster; for the embedded log a UUID kept in its directory."""
        ...

    @property
    def away_for(self) -> float | None:
        """Seconds for which the log has not answered; None while it does."""
        ...

    async def close(self) -> None: ...


class Sink(Protocol):
    """What a transport drives: the engine's side of group membership and consumption.

    All calls come on the engine's event loop. Batches of one partition come in order and one at a time: the next is
    offered only after the coroutine returned, which is the engine's back-pressure (`pause` below is for triggers).
    """

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """The whole current assignment, after each change. Journal partitions are then to be recovered by the engine,
        which calls `Membership.seek` with the offset it wants next."""
        ...

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """These are about to be lost. Returns when what can be saved is saved."""
        ...

    async def records(self, source: TopicPartition, batch: Batch) -> None: ...

    def unreadable(self, source: TopicPartition, error: OffsetGoneError) -> None:
        """The log does not hold what is to be read next of a journal partition; nothing more of it is delivered. Others
        go on."""
        ...

    def standby(self, partitions: frozenset[int]) -> None:
        """The journal partitions of which this member keeps a copy of the table; told after each change."""
        ...


class Member(NamedTuple):
    """One live processor: where its HTTP is, and which journal partitions it owns."""

    instance_id: str
    url: str
    partitions: tuple[int, ...]


class Membership(Protocol):
    """A running membership of the consumer group, over Faust."""

    async def start(self) -> None: ...

    async def failed(self) -> None:
        """Wait until this membership cannot go on, and raise why. Returns when it was stopped."""
        ...

    async def stop(self, *, leave: bool) -> None:
        """Stop consuming. With `leave`, the group forgets this member at once; without, its place waits for it."""
        ...

    def seek(self, source: TopicPartition, offset: int) -> None: ...

    def pause(self, source: TopicPartition) -> None: ...

    def resume(self, source: TopicPartition) -> None: ...

    def known(self, source: TopicPartition, next_offset: int) -> None:
        """Whoever consumes `source` wrote everything before `next_offset`, so it need not be brought. What others write
        may then come a moment later than it would."""
        ...

    def missed(self, source: TopicPartition) -> None:
        """Others have written to `source` too: bring it without delay."""
        ...

    def acked(self, source: TopicPartition, next_offset: int) -> None:
        """Trigger topics only: everything before `next_offset` may be committed (Faust commits it soon)."""
        ...

    async def pin(self, positions: Mapping[TopicPartition, int]) -> None:
        """Trigger topics only: commit at once where reading begins, all or none, also of partitions that other
        members have. Raises RetriableError, as when the group is being rearranged."""
        ...

    async def members(self) -> list[Member]:
        """The group as it stands, from its metadata; on the embedded log, this process alone."""
        ...
