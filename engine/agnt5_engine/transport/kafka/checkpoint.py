"""A checkpoint as one fenced Kafka transaction: rows to the changelog, the group's offset, all or nothing.

The transactions of all partitions share the log's connections; aiokafka's own transactional producer would be a whole
client for each. Of its protocol, this uses what Kafka calls the first version: partitions and group are added to the
transaction before they are written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from aiokafka import errors
from aiokafka.client import CoordinationType
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from agnt5_engine.transport.base import (
    FencedError,
    Message,
    RetriableError,
    TooLargeError,
    TopicPartition,
    TransportError,
)
from agnt5_engine.transport.kafka.batch import NOBODY, BatchWriter, Producing, next_sequence
from agnt5_engine.transport.kafka.wire import REQUEST_TIMEOUT_MS, RETRIABLE, Attempt, Channel, Wire

# How long Kafka lets a transaction stay open. One that was left open by a dead owner ends when the next one opens.
TRANSACTION_TIMEOUT_MS = 60_000
_PATIENCE = 30.0
_SHOWN_TIMEOUT = 1.0
_CONCURRENT = 51  # the last transaction's markers are still being written
_NOT_ENOUGH_REPLICAS = 19  # also said while the broker checks the transaction
_TOO_LARGE = frozenset({10, 18})
# Epoch, producer ID or transaction is not ours (any more). Some of these can have other causes (an ID that expired);
# all mean that only a new `open`, and so a new recovery, can tell.
_FENCED = frozenset({45, 47, 48, 49, 59, 67, 90})


class KafkaCheckpointer:
    """See `Checkpointer`. One partition's checkpoints, one after the other."""

    def __init__(self, wire: Wire, transactional_id: str, group: str, changelog: TopicPartition) -> None:
        self._wire = wire
        self._id = transactional_id
        self._group = group
        self._changelog = changelog
        self._who = NOBODY
        self._sequence = 0
        self._running: asyncio.Task[int] | None = None
        self._fenced: FencedError | None = None

    async def open(self) -> None:
        request = InitProducerIdRequest(self._id, TRANSACTION_TIMEOUT_MS)

        def answer(response: Any) -> int:
            self._who = Producing(response.producer_id, response.producer_epoch)
            return int(response.error_code)

        # Asked again after a lost answer, it only fences once more: nobody but this caller has opened in between, or
        # it is the later one that fences us.
        await self._transact(request, answer)
        self._sequence, self._fenced = 0, None

    async def write(self, rows: Sequence[Message], journal: TopicPartition, next_offset: int) -> int:
        if self._who is NOBODY:
            raise TransportError("this checkpointer was not opened")
        if self._running is not None:
            await asyncio.wait([self._running])
        # A transaction runs to its end even when its caller is cancelled: half of one would leave the sequence unknown.
        self._running = asyncio.get_running_loop().create_task(self._write(rows, journal, next_offset))
        self._running.add_done_callback(_seen)
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Let a running checkpoint end. Nothing needs to be told to Kafka."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _write(self, rows: Sequence[Message], journal: TopicPartition, next_offset: int) -> int:
        if self._fenced is not None:
            raise self._fenced
        try:
            await self._join()
            end, _ = await _both(self._produce(rows), self._commit_offset(journal, next_offset))
            await self._end(commit=True)
            await self._shown(end)
        except TooLargeError:
            await self._end(commit=False)
            raise
        except FencedError as error:
            self._fenced = error
            raise
        except BaseException:
            # What landed is unknown, and so is the next sequence number: reusing one would drop rows as repeated.
            self._fenced = FencedError(f"checkpoint {self._id}: the last one was cut short; open it again")
            raise
        return end

    # -- the steps of a transaction

    async def _join(self) -> None:
        topic, partition = self._changelog
        partitions = AddPartitionsToTxnRequest(self._id, *self._who, [(topic, [partition])])
        offsets = AddOffsetsToTxnRequest(self._id, *self._who, self._group)
        await _both(
            self._transact(partitions, lambda response: int(response.errors[0][1][0][1])),
            self._transact(offsets, lambda response: int(response.error_code)),
        )

    async def _end(self, *, commit: bool) -> None:
        request = EndTxnRequest(self._id, *self._who, commit)
        await self._transact(request, lambda response: int(response.error_code))

    async def _shown(self, end: int) -> None:
        """Wait until readers see it. It is durable, but Kafka writes the transaction's markers a moment later."""
        topic, partition = self._changelog
        request = OffsetRequest(-1, 1, [(topic, [(partition, -1)])])
        deadline = time.monotonic() + _SHOWN_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(errors.KafkaError, RetriableError):
                response = await self._wire.send(await self._wire.find_leader(self._changelog), request, Channel.ASK)
                ((_, ((_, code, _, offset, *_),)),) = response.topics
                if code == 0 and offset > end:
                    return
            await asyncio.sleep(0.001)

    async def _commit_offset(self, journal: TopicPartition, next_offset: int) -> None:
        topic, partition = journal
        offsets = [(topic, [(partition, next_offset, "")])]
        request = TxnOffsetCommitRequest(self._id, self._group, *self._who, offsets)
        await self._coordinate(
            CoordinationType.GROUP, self._group, request, lambda response: int(response.errors[0][1][0][1])
        )

    async def _transact(self, request: Any, code_of: Callable[[Any], int]) -> None:
        await self._coordinate(CoordinationType.TRANSACTION, self._id, request, code_of)

    async def _coordinate(self, kind: CoordinationType, key: str, request: Any, code_of: Callable[[Any], int]) -> None:
        """Ask a coordinator until it agrees. Every step can be repeated without harm."""
        wire = self._wire

        async def once() -> int:
            node = await wire.coordinator(kind, key)
            try:
                return code_of(await wire.send(node, request, Channel.TRANSACTION))
            except errors.KafkaError:
                wire.forget_coordinator(kind, key)
                raise

        def moved() -> None:
            wire.forget_coordinator(kind, key)

        await self._until_agreed(once, moved)

    async def _produce(self, rows: Sequence[Message]) -> int:
        """Write the rows, batch after batch; returns the offset after the last."""
        at, end = 0, 0
        while at < len(rows):
            writer = BatchWriter(self._who, self._sequence, int(time.time() * 1000), transactional=True)
            at = writer.add(rows, at)
            end = await self._send(writer.bytes()) + writer.count
            self._sequence = next_sequence(self._sequence, writer.count)
        return end

    async def _send(self, data: bytearray) -> int:
        topic, partition = self._changelog
        request = ProduceRequest(self._id, -1, REQUEST_TIMEOUT_MS * 8 // 10, [(topic, [(partition, data)])])
        offset = -1

        async def once() -> int:
            nonlocal offset
            node = await self._wire.find_leader(self._changelog)
            response = await self._wire.send(node, request, Channel.TRANSACTION)
            ((_, ((_, code, offset, *_),)),) = response.topics
            return int(code)

        await self._until_agreed(once, lambda: None)
        return offset

    async def _until_agreed(self, once: Callable[[], Awaitable[int]], moved: Callable[[], None]) -> None:
        attempt = Attempt(self._wire, _PATIENCE)
        while True:
            problem: Exception
            try:
                code = await once()
            except RetriableError as error:
                problem = error
            except errors.KafkaError as error:
                if not error.retriable:
                    raise TransportError(f"checkpoint {self._id}: {error}") from error
                problem = error
            else:
                if code == 0:
                    return
                if code in _FENCED:
                    name = errors.for_code(code).__name__
                    raise FencedError(f"checkpoint {self._id}: a later owner has opened this partition ({name})")
                if code in _TOO_LARGE:
                    raise TooLargeError(
                        f"checkpoint {self._id}: a row is larger than {self._changelog.topic} takes; raise its "
                        "`max.message.bytes`"
                    )
                if code in (_CONCURRENT, _NOT_ENOUGH_REPLICAS) and attempt.tries < 50:
                    attempt.tries += 1
                    await asyncio.sleep(0.005 if code == _CONCURRENT else 0.02)
                    continue
                if code not in RETRIABLE and not errors.for_code(code).retriable:
                    raise TransportError(f"checkpoint {self._id}: Kafka refuses it ({errors.for_code(code).__name__})")
                problem = errors.for_code(code)()
                moved()
            await attempt.failed(problem)
            with suppress(RetriableError):
                await self._wire.refresh()


_A = TypeVar("_A")
_B = TypeVar("_B")


async def _both(first: Awaitable[_A], second: Awaitable[_B]) -> tuple[_A, _B]:
    """Both results, or the first error, but never before both have ended."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


def _seen(task: asyncio.Task[int]) -> None:
    """Its caller may have gone: then nobody asks for the error, and that is no news."""
    if not task.cancelled():
        task.exception()
