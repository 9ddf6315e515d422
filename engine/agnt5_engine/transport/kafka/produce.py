"""The idempotent producer: per-partition group commit, one batch in flight per partition, nothing lost or reordered.

What waits for a partition while its batch is in flight goes into the next one, and the ready batches of all
partitions that one broker leads share a request. A batch whose fate is unknown is sent again, byte for byte, until the
broker's answer is known (it drops what it has already) or until the deadline of the append.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import structlog
from aiokafka import errors
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from agnt5_engine.transport.base import (
    Ack,
    BadTopicError,
    Message,
    RetriableError,
    TooLargeError,
    TopicPartition,
    TransportError,
)
from agnt5_engine.transport.kafka.batch import BATCH_BYTES, NOBODY, BatchWriter, Producing, next_sequence
from agnt5_engine.transport.kafka.topics import describe
from agnt5_engine.transport.kafka.wire import REQUEST_TIMEOUT_MS, RETRIABLE, Channel, Wire

log = structlog.stdlib.get_logger(__name__)

_BROKER_TIMEOUT_MS = REQUEST_TIMEOUT_MS * 8 // 10
_REFRESH_TIMEOUT = 1.5 * REQUEST_TIMEOUT_MS / 1000
_BATCH_HEADER, _RECORD_OVERHEAD = 61, 36
_TOO_LARGE = frozenset({10, 18})
# Out of order, epoch or producer unknown: the broker has lost this producer's state, or a batch of ours was given up.
_STRANGERS = frozenset({45, 47, 49, 59, 90})
_UNKNOWN_TOPIC, _DUPLICATE, _INVALID_RECORD = 3, 46, 87
_TOPIC_TRIES = 5  # a topic just created is known to all brokers a moment later


class _Append:
    """One caller's messages. `at`: the first that is in no batch yet."""

    __slots__ = ("ack", "at", "deadline", "future", "messages")

    def __init__(self, messages: Sequence[Message], future: asyncio.Future[Ack], deadline: float) -> None:
        self.messages = messages
        self.future = future
        self.deadline = deadline
        self.at = 0
        self.ack: Ack | None = None


class _Batch:
    """Bytes on their way. `parts`: whose they are, as (append, first message, one past the last)."""

    __slots__ = ("count", "data", "parts", "sent", "sequence", "time")

    def __init__(self, data: bytearray, count: int, parts: list[tuple[_Append, int, int]], sequence: int, time: int):
        self.data = data
        self.count = count
        self.parts = parts
        self.sequence = sequence
        self.time = time
        self.sent = False  # whether a broker may have it


class _Lane:
    """One partition: what waits, what is in flight, and the next sequence number."""

    __slots__ = ("batch", "busy", "bytes", "most", "sequence", "target", "unknown", "waiting", "who")

    def __init__(self, target: TopicPartition) -> None:
        self.target = target
        self.waiting: deque[_Append] = deque()
        self.batch: _Batch | None = None
        self.busy = False  # queued for a broker, in flight, or looking for its leader
        self.who = NOBODY
        self.sequence = 0
        self.most = 2**31  # appends in the next batch: halved when a batch is refused, to find the one to blame
        self.bytes = BATCH_BYTES  # less when the topic was found to take less
        self.unknown = 0  # answers in a row that there is no such topic


class Producer:
    """Appends to any partition. `delivery_timeout`: seconds after which an append that has no answer is given up."""

    def __init__(self, wire: Wire, delivery_timeout: float = 120.0) -> None:
        self._wire = wire
        self._delivery_timeout = delivery_timeout
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._ready: dict[int, list[_Lane]] = {}
        self._serving: set[int] = set()
        self._stray: list[_Lane] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling = False
        self._pause = 0.0  # before leaders are looked up again: grows until something lands
        self._shared = NOBODY
        self._naming = asyncio.Lock()
        self._closed = False

    async def append(self, target: TopicPartition, messages: Sequence[Message]) -> Ack:
        """See `Log.append`."""
        if self._closed:
            raise RetriableError("this log has been closed")
        if not messages:
            raise ValueError("nothing to append")
        lane = self._lanes.get(target)
        if lane is None:
            lane = self._lanes[target] = _Lane(target)
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        lane.waiting.append(_Append(messages, future, time.monotonic() + self._delivery_timeout))
        if not lane.busy:
            lane.busy = True
            self._offer(lane)
        return await future

    async def close(self) -> None:
        """Give up what is not acknowledged yet (callers get RetriableError)."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes.values():
            self._fail_all(lane, RetriableError("this log was closed before the broker answered"))

    # -- from a lane to a broker

    def _offer(self, lane: _Lane) -> None:
        node = self._wire.leader(lane.target)
        if node is None:
            self._stray.append(lane)
            if not self._settling:
                self._settling = True
                self._spawn(self._settle())
            return
        self._ready.setdefault(node, []).append(lane)
        if node not in self._serving:
            self._serving.add(node)
            self._spawn(self._serve(node))

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of this module: nobody may wait for ever on account of it.
            log.error("kafka.producer_broke", exc_info=error)
            self._ready.clear()
            self._stray.clear()
            for lane in self._lanes.values():
                if lane.busy:
                    self._fail_all(lane, RetriableError(f"{_name(lane)}: the producer broke ({error!r})"))
                    lane.busy = False

    async def _serve(self, node: int) -> None:
        """Send to one broker whatever is ready for it, one request at a time, until nothing is."""
        try:
            while lanes := self._ready.pop(node, None):
                await self._send(node, lanes)
        finally:
            self._serving.discard(node)

    async def _send(self, node: int, lanes: list[_Lane]) -> None:
        by_topic: dict[str, list[tuple[int, bytearray]]] = {}
        sending: dict[tuple[str, int], _Lane] = {}
        for lane in lanes:
            if lane.who is NOBODY:
                try:
                    await self._introduce(lane, node)
                except errors.KafkaError as error:
                    self._retry(lane, error)
                    continue
            batch = lane.batch or self._fill(lane)
            if batch is None:
                lane.busy = False
                continue
            topic, partition = lane.target
            by_topic.setdefault(topic, []).append((partition, batch.data))
            sending[topic, partition] = lane
        if not sending:
            return
        request = ProduceRequest(None, -1, _BROKER_TIMEOUT_MS, list(by_topic.items()))
        try:
            response = await self._wire.send(node, request, Channel.WRITE)
        except errors.KafkaError as error:
            for lane in sending.values():
                self._retry(lane, error)
            return
        for topic, partitions in response.topics:
            for partition, code, offset, at, *_ in partitions:
                lane = sending.pop((topic, partition))
                if code == 0:
                    self._landed(lane, offset, at)
                else:
                    self._refused(lane, code)
        for lane in sending.values():  # the broker owes an answer for each
            self._retry(lane, errors.KafkaProtocolError("the broker's answer left out a partition"))

    async def _introduce(self, lane: _Lane, node: int) -> None:
        """Give the lane a producer ID. All share one until one of them has lost track of its sequence."""
        async with self._naming:
            if lane.sequence < 0 or self._shared is NOBODY:
                response = await self._wire.send(node, InitProducerIdRequest(None, 2**31 - 1), Channel.WRITE)
                if response.error_code:
                    raise errors.for_code(response.error_code)()
                fresh = Producing(response.producer_id, response.producer_epoch)
                if lane.sequence < 0:
                    lane.who, lane.sequence = fresh, 0
                    return
                self._shared = fresh
        lane.who = self._shared

    def _fill(self, lane: _Lane) -> _Batch | None:
        """The next batch of a lane, of as much as waits and fits."""
        waiting = lane.waiting
        now = int(time.time() * 1000)
        writer = BatchWriter(lane.who, lane.sequence, now, limit=lane.bytes)
        parts: list[tuple[_Append, int, int]] = []
        while waiting and len(parts) < lane.most:
            append = waiting[0]
            if append.future.done():  # its caller has gone
                waiting.popleft()
                continue
            start, messages = append.at, append.messages
            try:
                stop = writer.add(messages, start)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:  # not what a Message holds
                append.future.set_exception(error)
                self._put_back(lane, parts)
                return self._fill(lane)
            if stop > start:
                append.at = stop
                parts.append((append, start, stop))
            if stop < len(messages):
                break
            waiting.popleft()
        if not parts:
            return None
        lane.batch = _Batch(writer.bytes(), writer.count, parts, lane.sequence, now)
        lane.sequence = next_sequence(lane.sequence, writer.count)
        return lane.batch

    # -- what the broker said

    def _landed(self, lane: _Lane, offset: int, at: int) -> None:
        batch = lane.batch
        assert batch is not None
        at = batch.time if at < 0 else at
        for append, start, stop in batch.parts:
            ack = append.ack
            if ack is None:
                ack = append.ack = Ack(offset, at)
            offset += stop - start
            if stop == len(append.messages) and not append.future.done():
                append.future.set_result(ack)
        lane.batch = None
        lane.most = 2**31
        lane.unknown = 0
        self._pause = 0.0
        self._next(lane)

    def _refused(self, lane: _Lane, code: int) -> None:
        batch = lane.batch
        assert batch is not None
        name = errors.for_code(code).__name__ if code in errors.kafka_errors else f"error {code}"
        if code in _STRANGERS:
            self._forget(lane)
            if batch.sent:
                text = f"the broker has lost track of this producer ({name}); it is unknown whether the append landed"
                self._fail_batch(lane, RetriableError(f"{_name(lane)}: {text}"))
            else:
                lane.batch = None
                self._put_back(lane, batch.parts)
            self._next(lane)
        elif code == _DUPLICATE:
            error = RetriableError(f"{_name(lane)}: the append landed earlier, and the broker no longer knows where")
            self._fail_batch(lane, error)
            self._next(lane)
        elif code == _UNKNOWN_TOPIC and lane.unknown < _TOPIC_TRIES:
            lane.unknown += 1
            self._retry(lane, errors.for_code(code)())
        elif code != _UNKNOWN_TOPIC and (code in RETRIABLE or errors.for_code(code).retriable):
            self._retry(lane, errors.for_code(code)())
        else:
            # Not appended, so its sequence is free again.
            lane.sequence, lane.batch = batch.sequence, None
            if len(batch.parts) > 1:  # smaller batches find out which append is to blame
                lane.most = len(batch.parts) // 2
                self._put_back(lane, batch.parts)
                self._next(lane)
            elif code in _TOO_LARGE and batch.count > 1:
                self._put_back(lane, batch.parts)
                self._spawn(self._fit(lane))
            else:
                lane.batch, lane.most = batch, 2**31
                self._fail_batch(lane, _final(lane, code, name, len(batch.data)))
                self._next(lane)

    async def _fit(self, lane: _Lane) -> None:
        """The first append in the lane is too large as one batch: refuse it, or send it in smaller ones."""
        append = lane.waiting[0]
        topic = lane.target.topic
        try:
            found = await describe(self._wire, [topic])
            limit = int(found[topic].config["max.message.bytes"])
        except (TransportError, KeyError, ValueError) as error:
            limit, reason = 0, f"and its limit is unknown ({error})"
        else:
            reason = f"its `max.message.bytes` is {limit}"
        largest = max(_size(message) for message in append.messages)
        if _BATCH_HEADER + largest > limit or limit >= lane.bytes:
            lane.waiting.popleft()
            lane.most = 2**31
            text = f"{_name(lane)}: a record of {largest} bytes is larger than the topic takes; {reason}"
            if not append.future.done():
                append.future.set_exception(TooLargeError(text))
        else:
            lane.bytes = limit
        self._next(lane)

    def _put_back(self, lane: _Lane, parts: list[tuple[_Append, int, int]]) -> None:
        for append, start, _ in reversed(parts):
            append.at = start
            if not lane.waiting or lane.waiting[0] is not append:
                lane.waiting.appendleft(append)

    def _next(self, lane: _Lane) -> None:
        if lane.waiting:
            self._offer(lane)
        else:
            lane.busy = False

    def _forget(self, lane: _Lane) -> None:
        """The lane's sequence is unknown to us or to the broker: go on under a name of its own."""
        lane.who, lane.sequence = NOBODY, -1

    # -- trouble

    def _retry(self, lane: _Lane, error: Exception) -> None:
        if lane.batch is not None:
            lane.batch.sent = lane.batch.sent or not isinstance(error, errors.NodeNotReadyError)
        if isinstance(error, _ABSENCE):
            self._wire.is_away(error)
        self._stray.append(lane)
        if not self._settling:
            self._settling = True
            self._spawn(self._settle())

    async def _settle(self) -> None:
        """Find out the leaders of stray lanes again, until each has one or its appends are overdue."""
        try:
            while self._stray:
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2 or 0.05, 0.5)
                lanes, self._stray = self._stray, []
                try:
                    async with asyncio.timeout(_REFRESH_TIMEOUT):
                        answered = await self._wire.refresh(*{lane.target.topic for lane in lanes})
                except (TimeoutError, RetriableError):
                    answered = False
                except TransportError as error:
                    for lane in lanes:
                        self._fail_all(lane, error)
                        lane.busy = False
                    continue
                for lane in lanes:
                    if self._wire.leader(lane.target) is None and answered:
                        lane.unknown += 1
                        if lane.unknown > _TOPIC_TRIES and self._missing(lane):
                            continue
                    self._expire(lane)
                    if lane.batch is None and not lane.waiting:
                        lane.busy = False
                    else:
                        self._offer(lane)
        finally:
            self._settling = False

    def _missing(self, lane: _Lane) -> bool:
        try:
            self._wire.check_exists(lane.target)
        except BadTopicError as error:
            self._fail_all(lane, error)
            lane.busy, lane.unknown = False, 0
            return True
        return False

    def _expire(self, lane: _Lane) -> None:
        """Fail what is overdue."""
        now = time.monotonic()
        batch = lane.batch
        if batch is not None and min(append.deadline for append, _, _ in batch.parts) < now:
            if batch.sent:
                self._forget(lane)
                text = "it is unknown whether the append landed"
            else:
                lane.sequence = batch.sequence
                text = "nothing was appended"
            waited = f"{_name(lane)}: no answer from the broker for {self._delivery_timeout:.0f} s"
            self._fail_batch(lane, RetriableError(f"{waited}; {text}"))
        while lane.waiting and lane.waiting[0].deadline < now:
            append = lane.waiting.popleft()
            if not append.future.done():
                append.future.set_exception(
                    RetriableError(f"{_name(lane)}: the broker was away for {self._delivery_timeout:.0f} s")
                )

    def _fail_batch(self, lane: _Lane, error: TransportError) -> None:
        batch, lane.batch = lane.batch, None
        assert batch is not None
        for append, _, _ in batch.parts:
            if not append.future.done():
                append.future.set_exception(error)
        # The rest of an append that failed is not sent: `_fill` drops whatever has its answer.

    def _fail_all(self, lane: _Lane, error: TransportError) -> None:
        if lane.batch is not None:
            if lane.batch.sent:
                self._forget(lane)
            else:
                lane.sequence = lane.batch.sequence
            self._fail_batch(lane, error)
        for append in lane.waiting:
            if not append.future.done():
                append.future.set_exception(error)
        lane.waiting.clear()


_ABSENCE = (
    errors.KafkaConnectionError,
    errors.NodeNotReadyError,
    errors.RequestTimedOutError,
    errors.NoBrokersAvailable,
)


def _size(message: Message) -> int:
    """At most so many bytes in a batch."""
    headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in message.headers)
    return len(message.key or b"") + len(message.value or b"") + headers + _RECORD_OVERHEAD


def _name(lane: _Lane) -> str:
    return f"{lane.target.topic}[{lane.target.partition}]"


def _final(lane: _Lane, code: int, name: str, size: int) -> TransportError:
    if code in _TOO_LARGE:
        return TooLargeError(
            f"{_name(lane)}: a record of {size} bytes is larger than the topic takes; raise its `max.message.bytes`"
        )
    if code == _UNKNOWN_TOPIC:
        return BadTopicError(f"topic {lane.target.topic!r} does not exist; create it first")
    if code in (17, 29):
        return BadTopicError(f"{_name(lane)}: Kafka refuses this topic ({name}); check its name and this user's access")
    if code == _INVALID_RECORD:
        return TransportError(f"{_name(lane)}: Kafka refuses the record; in a compacted topic each needs a key")
    return TransportError(f"{_name(lane)}: Kafka refuses the record ({name})")
