"""Group commit: everything asked for while one sync runs becomes the next atomic write and shares the next sync.

All of it runs on the event loop except the sync itself, which waits on its own thread without holding the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from agnt5_engine.transport.base import Ack, TransportError
from agnt5_engine.transport.embedded import batches
from agnt5_engine.transport.embedded.batches import Piece
from agnt5_engine.transport.embedded.store import Store, WriteBatch
from agnt5_engine.transport.embedded.topics import Appended, Partition

_BATCH_RECORDS = 1000  # a stored batch is what a reader has to decode at once
_BATCH_BYTES = 1 << 19
_REOPEN_SECONDS = 1.0  # how often a failed store is opened anew, at most


class Group:
    """One atomic write while it is put together. A change gets it to add its keys."""

    __slots__ = ("after", "batch", "now", "published", "results", "sequence")

    def __init__(self, now: int) -> None:
        self.batch = WriteBatch(raw_mode=True)
        self.now = now
        self.published: list[tuple[Partition, Appended]] = []
        self.results: list[tuple[asyncio.Future[Any], Any]] = []
        self.after: list[Callable[[], None]] = []  # what is to be done once all of it is durable
        self.sequence = 0

    def append(self, partition: Partition, pieces: Sequence[Piece]) -> Ack:
        """Append at the partition's end. What fits is stored as one batch, however many callers it came from."""
        stamp = partition.time = max(self.now, partition.time)
        ack = Ack(partition.next, stamp)
        gathered: list[Piece] = []
        count = size = 0
        for piece in pieces:
            if gathered and (count + len(piece.messages) > _BATCH_RECORDS or size + piece.size > _BATCH_BYTES):
                self._put(partition, stamp, gathered)
                gathered, count, size = [], 0, 0
            gathered.append(piece)
            count += len(piece.messages)
            size += piece.size
        if gathered:
            self._put(partition, stamp, gathered)
        return ack

    def _put(self, partition: Partition, stamp: int, pieces: list[Piece]) -> None:
        piece = pieces[0] if len(pieces) == 1 else batches.join(pieces)
        self.batch.put(partition.key(partition.next), batches.encode(stamp, piece))
        self.published.append((partition, Appended(partition.next, stamp, piece.messages, piece.size)))
        partition.next += len(piece.messages)


Change = Callable[[Group], Any]
"""Adds its keys to the group and returns its result, or raises a TransportError and then has added nothing."""


class GroupCommit:
    def __init__(self, store: Store, reload: Callable[[], None]) -> None:
        self._store = store
        self._reload = reload
        self._loop: asyncio.AbstractEventLoop | None = None
        self._appends: dict[Partition, list[tuple[Sequence[Piece], asyncio.Future[Ack]]]] = {}
        self._changes: list[tuple[Change, asyncio.Future[Any]]] = []
        self._busy = False  # a commit is scheduled or under way
        self._idle: asyncio.Future[None] | None = None
        self._failed: TransportError | None = None
        self._retry_at = 0.0
        self._syncs: SimpleQueue[Group | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    # -- asking

    def append(self, partition: Partition, pieces: Sequence[Piece]) -> asyncio.Future[Ack]:
        """The offset of the first message, once all are durable."""
        future: asyncio.Future[Ack] = self._schedule().create_future()
        waiting = self._appends.get(partition)
        if waiting is None:
            self._appends[partition] = [(pieces, future)]
        else:
            waiting.append((pieces, future))
        return future

    def change(self, change: Change) -> asyncio.Future[Any]:
        """The change's result, once it is durable. Changes see the appends that were asked for before them."""
        future: asyncio.Future[Any] = self._schedule().create_future()
        self._changes.append((change, future))
        return future

    async def close(self) -> None:
        """Finish what was asked for, then end the thread."""
        while self._busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        thread, self._thread, self._loop = self._thread, None, None
        if thread is not None:
            self._syncs.put(None)
            thread.join()  # it is waiting for work: this takes no time

    def _schedule(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run_syncs, args=(loop,), name="agnt5-log-sync", daemon=True)
            self._thread.start()
        if not self._busy:
            self._busy = True
            loop.call_soon(self._commit)
        return loop

    # -- doing

    def _commit(self) -> None:
        appends, self._appends = self._appends, {}
        changes, self._changes = self._changes, []
        group = Group(time.time_ns() // 1_000_000)
        try:
            if self._failed is not None:
                self._recover(self._failed)
            for partition, waiting in appends.items():
                offset = partition.next
                time_ = group.append(partition, [piece for pieces, _ in waiting for piece in pieces]).time
                for pieces, future in waiting:
                    group.results.append((future, Ack(offset, time_)))
                    offset += sum(len(piece.messages) for piece in pieces)
            for change, future in changes:
                try:
                    group.results.append((future, change(group)))
                except TransportError as error:
                    if not future.done():
                        future.set_exception(error)
            group.sequence = self._store.write(group.batch)
        except Exception as error:
            asked = [future for waiting in appends.values() for _, future in waiting]
            self._fail(asked + [future for _, future in changes], error)
            self._go_on()
        else:
            self._syncs.put(group)

    def _run_syncs(self, loop: asyncio.AbstractEventLoop) -> None:
        while (group := self._syncs.get()) is not None:
            error: TransportError | None = None
            try:
                self._store.sync()
                self._store.acknowledge(group.sequence)
            except TransportError as failure:
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop was closed without closing the log
                loop.call_soon_threadsafe(self._synced, group, error)

    def _synced(self, group: Group, error: TransportError | None) -> None:
        if error is not None:
            self._fail([future for future, _ in group.results], error)
        else:
            for act in group.after:
                act()
            moved = set()
            for partition, batch in group.published:
                partition.publish(batch)
                moved.add(partition)
            for future, result in group.results:
                if not future.done():
                    future.set_result(result)
            for partition in moved:
                for listener in tuple(partition.listeners):
                    listener()
        self._go_on()

    def _go_on(self) -> None:
        if self._appends or self._changes:
            assert self._loop is not None
            self._loop.call_soon(self._commit)  # after those just woken, whose appends then join
        else:
            self._busy = False
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    # -- failing

    def _fail(self, futures: Sequence[asyncio.Future[Any]], error: Exception) -> None:
        broken = error if isinstance(error, TransportError) else self._store.explain(error)
        if broken is not self._failed:
            self._failed = broken
            self._retry_at = time.monotonic() + _REOPEN_SECONDS
        for future in futures:
            if not future.done():
                future.set_exception(broken)

    def _recover(self, failed: TransportError) -> None:
        """After a failed write only the disk knows what landed: open it again and start over from there."""
        if time.monotonic() < self._retry_at:
            raise failed
        self._store.reopen()
        self._reload()
        self._failed = None
