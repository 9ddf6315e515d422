"""The idempotent producer: per-partition group commit, one batch in flight per partition, nothing lost or reordered.

What waits for a partition while its batch is in flight goes into the next one, and the ready batches of all
partitions that one broker leads share a request. A batch whose fate is unknown is sent again, byte for byte, until the
broker's answer is known (it drops what it has already) or until the deadline of the append.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

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
from agnt5_engine.transport.kafka.batch import NOBODY, Producing
from agnt5_engine.transport.kafka.lanes import Append, Lane
from agnt5_engine.transport.kafka.topics import describe
from agnt5_engine.transport.kafka.wire import REQUEST_TIMEOUT_MS, RETRIABLE, Channel, Wire

log = structlog.stdlib.get_logger(__name__)

_BROKER_TIMEOUT_MS = REQUEST_TIMEOUT_MS * 8 // 10
_REFRESH_TIMEOUT = 1.5 * REQUEST_TIMEOUT_MS / 1000
_IN_FLIGHT = 4  # requests to one broker, each for other partitions
# A request is not added to beyond this: a broker cuts off whoever sends one that is larger than it takes (100 MiB).
_REQUEST_BYTES = 4 * 2**20
_BATCH_HEADER, _RECORD_OVERHEAD = 61, 36
_TOO_LARGE = frozenset({10, 18})
# Out of order, epoch or producer unknown: the broker has lost this producer's state, or a batch of ours was given up.
_STRANGERS = frozenset({45, 47, 49, 59, 90})
_UNKNOWN_TOPIC, _DUPLICATE, _INVALID_RECORD = 3, 46, 87
_TOPIC_TRIES = 5  # a topic just created is known to all brokers a moment later


class Producer:
    """Appends to any partition. `delivery_timeout`: seconds after which an append that has no answer is given up."""

    def __init__(self, wire: Wire, delivery_timeout: float = 120.0) -> None:
        self._wire = wire
        self._delivery_timeout = delivery_timeout
        self._lanes: dict[TopicPartition, Lane] = {}
        self._ready: dict[int, list[Lane]] = {}
        self._serving: Counter[int] = Counter()
        self._stray: list[Lane] = []
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
            lane = self._lanes[target] = Lane(target)
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        lane.waiting.append(Append(messages, future, time.monotonic() + self._delivery_timeout))
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
            lane.fail_all(RetriableError("this log was closed before the broker answered"))

    # -- from a lane to a broker

    def _offer(self, lane: Lane) -> None:
        node = self._wire.leader(lane.target)
        if node is None:
            self._stray.append(lane)
            if not self._settling:
                self._settling = True
                self._spawn(self._settle())
            return
        self._ready.setdefault(node, []).append(lane)
        if self._serving[node] < _IN_FLIGHT:
            self._serving[node] += 1
            self._spawn(self._serve(node))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
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
                    lane.fail_all(RetriableError(f"{lane}: the producer broke ({error!r})"))
                    lane.busy = False

    async def _serve(self, node: int) -> None:
        """Send to one broker whatever is ready for it, request after request, until nothing is."""
        try:
            while lanes := self._ready.pop(node, None):
                await self._send(node, lanes)
        finally:
            self._serving[node] -= 1

    async def _send(self, node: int, lanes: list[Lane]) -> None:
        by_topic: dict[str, list[tuple[int, bytearray]]] = {}
        sending: dict[tuple[str, int], Lane] = {}
        size = 0
        for lane in lanes:
            if size >= _REQUEST_BYTES:
                self._offer(lane)
                continue
            if lane.who is NOBODY:
                try:
                    await self._introduce(lane, node)
                except errors.ClusterAuthorizationFailedError as error:
                    text = "give this user the right IdempotentWrite on the cluster (Kafka before 2.8 wants it)"
                    lane.fail_all(TransportError(f"{lane}: Kafka refuses the append ({error}); {text}"))
                    lane.busy = False
                    continue
                except errors.KafkaError as error:
                    self._retry(lane, error)
                    continue
            batch = lane.batch or lane.fill()
            if batch is None:
                lane.busy = False
                continue
            topic, partition = lane.target
            by_topic.setdefault(topic, []).append((partition, batch.data))
            sending[topic, partition] = lane
            size += len(batch.data)
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

    async def _introduce(self, lane: Lane, node: int) -> None:
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

    # -- what the broker said

    def _landed(self, lane: Lane, offset: int, at: int) -> None:
        lane.landed(offset, at)
        self._pause = 0.0
        self._next(lane)

    def _refused(self, lane: Lane, code: int) -> None:
        batch = lane.batch
        assert batch is not None
        name = errors.for_code(code).__name__ if code in errors.kafka_errors else f"error {code}"
        if code in _STRANGERS:
            if batch.sent:
                fate = "it is unknown whether the append landed"
                lane.fail_batch(RetriableError(f"{lane}: the broker has lost track of this producer ({name}); {fate}"))
            else:
                lane.put_back(lane.take_back().parts)
            lane.forget()
            self._next(lane)
        elif code == _DUPLICATE:
            batch.sent = True
            lane.fail_batch(RetriableError(f"{lane}: the append landed earlier, and the broker no longer knows where"))
            self._next(lane)
        elif code == _UNKNOWN_TOPIC and lane.unknown < _TOPIC_TRIES:
            lane.unknown += 1
            self._retry(lane, errors.for_code(code)())
        elif code != _UNKNOWN_TOPIC and (code in RETRIABLE or errors.for_code(code).retriable):
            self._retry(lane, errors.for_code(code)())
        else:
            lane.take_back()
            if len(batch.parts) > 1:
                lane.halve(batch)
                self._next(lane)
            elif code in _TOO_LARGE and batch.count > 1:
                lane.put_back(batch.parts)
                self._spawn(self._fit(lane))
            else:
                lane.blame(batch, _final(lane, code, name, len(batch.data)))
                self._next(lane)

    async def _fit(self, lane: Lane) -> None:
        """The first append in the lane is too large as one batch: refuse it, or send it in smaller ones."""
        append = lane.waiting[0]
        topic = lane.target.topic
        try:
            async with asyncio.timeout(append.deadline - time.monotonic()):
                found = await describe(self._wire, [topic])
            limit = int(found[topic].config["max.message.bytes"])
        except (RetriableError, TimeoutError):
            lane.waiting.popleft()
            text = f"{lane}: too large as one batch, and Kafka does not tell just now how large one may be"
            append.fail(RetriableError(text))
            self._next(lane)
            return
        except (TransportError, KeyError, ValueError) as error:
            limit, reason = 0, f"and its limit is unknown ({error})"
        else:
            reason = f"its `max.message.bytes` is {limit}"
        largest = max(_size(message) for message in append.messages)
        if _BATCH_HEADER + largest > limit or limit >= lane.bytes:
            lane.waiting.popleft()
            text = f"{lane}: a record of {largest} bytes is larger than the topic takes; {reason}"
            append.fail(TooLargeError(text))
        else:
            lane.bytes = limit
        self._next(lane)

    def _next(self, lane: Lane) -> None:
        if lane.waiting:
            self._offer(lane)
        else:
            lane.busy = False

    # -- trouble

    def _retry(self, lane: Lane, error: Exception) -> None:
        if lane.batch is not None:
            lane.batch.sent = lane.batch.sent or not isinstance(error, errors.NodeNotReadyError)
        if isinstance(error, _ABSENCE):
            self._wire.note_away(error)
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
                        lane.fail_all(error)
                        lane.busy = False
                    continue
                for lane in lanes:
                    if self._wire.leader(lane.target) is None and answered:
                        lane.unknown += 1
                        if lane.unknown > _TOPIC_TRIES and self._missing(lane):
                            continue
                    lane.expire(self._delivery_timeout)
                    if lane.batch is None and not lane.waiting:
                        lane.busy = False
                    else:
                        self._offer(lane)
        finally:
            self._settling = False

    def _missing(self, lane: Lane) -> bool:
        try:
            self._wire.check_exists(lane.target)
        except BadTopicError as error:
            lane.fail_all(error)
            lane.busy, lane.unknown = False, 0
            return True
        return False


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


def _final(lane: Lane, code: int, name: str, size: int) -> TransportError:
    if code in _TOO_LARGE:
        return TooLargeError(
            f"{lane}: a record of {size} bytes is larger than the topic takes; raise its `max.message.bytes`"
        )
    if code == _UNKNOWN_TOPIC:
        return BadTopicError(f"topic {lane.target.topic!r} does not exist; create it first")
    if code in (17, 29):
        return BadTopicError(f"{lane}: Kafka refuses this topic ({name}); check its name and this user's access")
    if code == _INVALID_RECORD:
        return TransportError(f"{lane}: Kafka refuses the record; in a compacted topic each needs a key")
    return TransportError(f"{lane}: Kafka refuses the record ({name})")
