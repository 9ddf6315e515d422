"""A checkpoint on the embedded log: rows and the group's offset in one atomic write, refused to a fenced owner."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agnt5_engine.transport.base import FencedError, Message, TopicPartition, TransportError
from agnt5_engine.transport.embedded.group_commit import Group
from agnt5_engine.transport.embedded.store import Store, epoch_key

if TYPE_CHECKING:
    from agnt5_engine.transport.embedded.log import EmbeddedLog

_EPOCH = struct.Struct(">Q")


class Epochs:
    """The latest epoch of each transactional ID: whoever holds an earlier one is fenced."""

    def __init__(self, store: Store) -> None:
        self._latest: dict[str, int] = {}
        self.load(store)

    def load(self, store: Store) -> None:
        self._latest = {key[1:].decode(): _EPOCH.unpack(value)[0] for key, value in store.scan(b"e")}

    def advance(self, transactional_id: str, commit: Group) -> int:
        epoch = self._latest.get(transactional_id, 0) + 1
        self._latest[transactional_id] = epoch
        commit.batch.put(epoch_key(transactional_id), _EPOCH.pack(epoch))
        return epoch

    def latest(self, transactional_id: str) -> int:
        return self._latest.get(transactional_id, 0)


class EmbeddedCheckpointer:
    """`Checkpointer` of transport/base.py."""

    def __init__(self, log: EmbeddedLog, transactional_id: str, group: str, changelog: TopicPartition) -> None:
        self._log = log
        self._transactional_id = transactional_id
        self._group = group
        self._changelog = changelog
        self._epoch: int | None = None

    async def open(self) -> None:
        self._epoch = await self._log.commit.change(
            lambda commit: self._log.epochs.advance(self._transactional_id, commit)
        )

    async def write(self, rows: Sequence[Message], journal: TopicPartition, next_offset: int) -> int:
        if self._epoch is None:
            raise TransportError("the checkpointer is not open: call open() first")
        log = self._log
        partition = log.topics_by_name.partition(self._changelog)
        log.topics_by_name.partition(journal)
        pieces = log.lay_out(partition, rows)

        def change(commit: Group) -> int:
            if log.epochs.latest(self._transactional_id) != self._epoch:
                raise FencedError(
                    f"a later owner of {journal.topic}[{journal.partition}] has opened its checkpoints; "
                    f"nothing of this one was written"
                )
            commit.append(partition, pieces)
            log.put_offset(commit, self._group, journal, next_offset)
            return partition.next

        end: int = await log.commit.change(change)
        return end

    async def close(self) -> None:
        self._epoch = None
