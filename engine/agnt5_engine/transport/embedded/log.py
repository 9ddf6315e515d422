"""The embedded log: `Log` of transport/base.py over one RocksDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from agnt5_engine.transport.base import (
    Ack,
    Batch,
    Checkpointer,
    Message,
    OffsetGoneError,
    Record,
    TooLargeError,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    TransportError,
)
from agnt5_engine.transport.embedded import batches
from agnt5_engine.transport.embedded.checkpoint import EmbeddedCheckpointer, Epochs
from agnt5_engine.transport.embedded.cleaning import Cleaner
from agnt5_engine.transport.embedded.group_commit import Group, GroupCommit
from agnt5_engine.transport.embedded.store import (
    Store,
    directory_of,
    group_key,
    offset_bytes,
    offset_of,
    split_group_key,
)
from agnt5_engine.transport.embedded.topics import Appended, Partition, Topic, Topics

READ_RECORDS = 2000
READ_BYTES = 4 << 20
_PIECE_RECORDS = 250

_open: dict[Path, EmbeddedLog] = {}


def open_log(url: str) -> EmbeddedLog:
    """The log of an `embedded://DIR` URL; the same one for everybody in this process, until all have closed it.

    Raises StoreError (a TransportError) when the directory is in use, damaged or of a newer version.
    """
    directory = directory_of(url)
    path = directory.resolve()
    log = _open.get(path)
    if log is None:
        log = _open[path] = EmbeddedLog(directory, path)
    log.users += 1
    return log


class EmbeddedLog:
    """One directory's log. All methods belong to one event loop, the one that first appends."""

    def __init__(self, directory: Path, identity: Path) -> None:
        self._identity = identity
        self.users = 0
        self.store = Store(directory)
        try:
            self.topics_by_name = Topics(self.store)
            self.commit = GroupCommit(self.store, self._reload)
            self.epochs = Epochs(self.store)
            self._groups: dict[tuple[str, TopicPartition], int] = {}
            self._load_groups()
        except BaseException:
            self.store.close()
            raise
        self.cleaner = Cleaner(self)

    # -- appending

    async def append(self, target: TopicPartition, messages: Sequence[Message]) -> Ack:
        """However many the messages are, they land together: all of them or, on an error, none."""
        if not messages:
            raise ValueError("append needs at least one message")
        partition = self.topics_by_name.partition(target)
        self.cleaner.wake()
        return await self.commit.append(partition, self.lay_out(partition, messages))

    def lay_out(self, partition: Partition, messages: Sequence[Message]) -> list[batches.Piece]:
        """The messages in the pieces they are stored in. Raises TooLargeError, and TransportError for a missing key."""
        if len(messages) <= _PIECE_RECORDS:
            pieces = [batches.lay_out(tuple(messages))]  # a copy: the caller may go on with its list
        else:
            parts = range(0, len(messages), _PIECE_RECORDS)
            pieces = [batches.lay_out(messages[at : at + _PIECE_RECORDS]) for at in parts]
        topic = partition.topic
        for piece in pieces:
            if piece.size > topic.max_message_bytes:
                _check_sizes(topic, piece.messages)
        if topic.compacted and any(message[0] is None for message in messages):
            raise TransportError(f"topic {topic.name!r} is compacted: every record needs a key")
        return pieces

    # -- reading

    async def read(self, source: TopicPartition, start: int, end: int) -> AsyncIterator[Batch]:
        partition = self.topics_by_name.partition(source)
        if start < end:
            _check_offset(partition, start)
        position = start
        moved = asyncio.Event()
        while position < end:
            if position >= partition.end:
                partition.listen(moved.set)
                try:
                    while position >= partition.end:
                        moved.clear()
                        await moved.wait()
                finally:
                    partition.unlisten(moved.set)
            batch = self.fetch(partition, position, min(end, partition.end))
            position = batch.next_offset
            yield batch
            await asyncio.sleep(0)

    def fetch(
        self, partition: Partition, start: int, end: int, records: int = READ_RECORDS, size: int = READ_BYTES
    ) -> Batch:
        """At least the next stored batch from `start` on, at most up to `end` (<= `partition.end`)."""
        _check_offset(partition, start)
        if start >= end:
            return Batch([], start)
        tail = partition.tail
        if tail and tail[0].base <= start:
            return _from_tail(partition, start, end, records)
        return self._fetch_stored(partition, start, end, records, size)

    def _fetch_stored(self, partition: Partition, start: int, end: int, records: int, size: int) -> Batch:
        prefix = partition.prefix
        whole = not partition.topic.compacted
        found: list[Record] = []
        position = start
        taken = 0
        entries = self.store.db.iter()
        entries.seek_for_prev(partition.key(start))
        if not entries.valid() or not entries.key().startswith(prefix):
            entries.seek(partition.key(start))
        while entries.valid():
            key = entries.key()
            base = offset_of(key)
            if base >= end or not key.startswith(prefix):
                break
            data = entries.value()
            after = base + batches.head(data).span
            if after > position:
                if whole and base > position:
                    break
                found += batches.decode(base, data)
                position = after
                taken += len(data)
                if len(found) >= records or taken >= size:
                    break
            entries.next()
        else:
            self.store.check(entries)
        if position < end and len(found) < records and taken < size:
            if whole:
                raise self.store.damaged(f"{partition.topic.name}[{partition.number}] lacks offset {position}")
            position = end  # the rest was compacted away
        if found and found[0].offset < start:
            found = [record for record in found if record.offset >= start]
        if position > end:
            found = [record for record in found if record.offset < end]
            position = end
        return Batch(found, position)

    async def bounds(self, source: TopicPartition) -> tuple[int, int]:
        partition = self.topics_by_name.partition(source)
        return partition.start, partition.end

    async def offset_at(self, source: TopicPartition, time: int) -> int:
        return self.first_at(self.topics_by_name.partition(source), time)

    def first_at(self, partition: Partition, time: int) -> int:
        """The first offset whose time is `time` or later: times never go back, so halving finds it."""
        low, high = partition.start, partition.end
        entries = self.store.db.iter()
        while low < high:
            middle = (low + high) // 2
            entries.seek_for_prev(partition.key(middle))
            if not entries.valid() or not entries.key().startswith(partition.prefix):
                self.store.check(entries)
                low = middle + 1
                continue
            base = offset_of(entries.key())
            head = batches.head(entries.value())
            if head.time >= time:
                high = max(low, base)
            else:
                low = max(middle + 1, base + head.span)
        return min(low, partition.end)

    # -- groups

    async def committed(self, group: str, source: TopicPartition) -> int | None:
        return self._groups.get((group, source))

    async def commit_offsets(self, group: str, offsets: dict[TopicPartition, int]) -> None:
        """A group's positions, durable when this returns."""

        def change(commit: Group) -> None:
            for source, offset in offsets.items():
                self.put_offset(commit, group, source, offset)

        await self.commit.change(change)

    def put_offset(self, commit: Group, group: str, source: TopicPartition, offset: int) -> None:
        partition = self.topics_by_name.partition(source)
        commit.batch.put(group_key(partition.topic.id, partition.number, group), offset_bytes(offset))
        self._groups[group, source] = offset

    def _load_groups(self) -> None:
        topics = self.topics_by_name.by_id()
        self._groups.clear()
        for key, value in self.store.scan(b"g"):
            topic, partition, group = split_group_key(key)
            if topic in topics:
                self._groups[group, TopicPartition(topics[topic].name, partition)] = offset_of(value)

    def checkpointer(self, transactional_id: str, group: str, changelog: TopicPartition) -> Checkpointer:
        return EmbeddedCheckpointer(self, transactional_id, group, changelog)

    # -- topics

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        wanted = None if names is None else frozenset(names)
        return {topic.name: topic.info() for topic in self.topics_by_name if wanted is None or topic.name in wanted}

    async def create(self, specs: Sequence[TopicSpec], replication: int | None = None) -> None:
        """Make the topics that do not exist; those that do stay as they are. There is one copy, whatever is asked."""

        def change(commit: Group) -> None:
            self.topics_by_name.add(specs, commit.batch)
            commit.after.append(self.topics_by_name.show)

        await self.commit.change(change)
        for listener in tuple(self.topics_by_name.listeners):
            listener()

    async def cluster_id(self) -> str:
        return self.store.cluster_id

    # -- ending

    def _reload(self) -> None:
        self.topics_by_name.load(self.store)
        self.epochs.load(self.store)
        self._load_groups()

    @property
    def away_for(self) -> float | None:
        return None

    async def close(self) -> None:
        """The last of those who opened it closes the directory."""
        if self.users == 0:
            return
        self.users -= 1
        if self.users:
            return
        await self.cleaner.close()
        await self.commit.close()
        _open.pop(self._identity, None)
        self.store.close()


def _check_offset(partition: Partition, offset: int) -> None:
    if not partition.start <= offset <= partition.end:
        raise OffsetGoneError(
            f"{partition.topic.name}[{partition.number}] has offsets {partition.start} to {partition.end}, not {offset}"
        )


def _check_sizes(topic: Topic, messages: Sequence[Message]) -> None:
    for message in messages:
        if (size := batches.size(message)) > topic.max_message_bytes:
            raise TooLargeError(
                f"a record of {size} bytes is more than topic {topic.name!r} takes: its max.message.bytes is "
                f"{topic.max_message_bytes}. Raise AGNT5_MAX_PAYLOAD_BYTES, or keep large data elsewhere."
            )


def _from_tail(partition: Partition, start: int, end: int, limit: int) -> Batch:
    """Records that are still in memory. Readers stand near the end, so it is looked up from there."""
    wanted: list[Appended] = []
    for appended in reversed(partition.tail):
        wanted.append(appended)
        if appended.base <= start:
            break
    found: list[Record] = []
    position = start
    for base, time, messages, _ in reversed(wanted):
        if position >= end or len(found) >= limit:
            break
        after = base + len(messages)
        if position > base or after > end:
            messages = messages[position - base : end - base]
        found += [
            Record(offset, time, key, value, headers) for offset, (key, value, headers) in enumerate(messages, position)
        ]
        position = min(after, end)
    return Batch(found, position)
