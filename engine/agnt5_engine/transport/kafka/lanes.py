"""What the producer holds of one partition: appends that wait, the batch in flight, the next sequence number."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from agnt5_engine.transport.base import Ack, Message, RetriableError, TopicPartition, TransportError
from agnt5_engine.transport.kafka.batch import BATCH_BYTES, NOBODY, BatchWriter, next_sequence

_UNLIMITED = 2**31


class Append:
    """One caller's messages. `at`: the first that is in no batch yet."""

    __slots__ = ("ack", "at", "deadline", "future", "messages")

    def __init__(self, messages: Sequence[Message], future: asyncio.Future[Ack], deadline: float) -> None:
        self.messages = messages
        self.future = future
        self.deadline = deadline
        self.at = 0
        self.ack: Ack | None = None

    def fail(self, error: Exception) -> None:
        # The rest of an append that failed is not sent: `fill` drops whatever has its answer.
        if not self.future.done():
            self.future.set_exception(error)


Part = tuple[Append, int, int]
"""An append's messages in one batch: from the first to one past the last."""


class Outgoing:
    """A batch on its way."""

    __slots__ = ("count", "data", "parts", "sent", "sequence", "time")

    def __init__(self, data: bytearray, count: int, parts: list[Part], sequence: int, time: int) -> None:
        self.data = data
        self.count = count
        self.parts = parts
        self.sequence = sequence
        self.time = time
        self.sent = False  # whether a broker may have it


class Lane:
    """One partition's way to the log."""

    __slots__ = ("batch", "busy", "bytes", "most", "sequence", "target", "unknown", "waiting", "who")

    def __init__(self, target: TopicPartition) -> None:
        self.target = target
        self.waiting: deque[Append] = deque()
        self.batch: Outgoing | None = None
        self.busy = False  # queued for a broker, in flight, or looking for its leader
        self.who = NOBODY
        self.sequence = 0  # negative: unknown, so the lane needs a producer ID of its own
        self.most = _UNLIMITED  # appends in the next batch: halved when one is refused, to find the one to blame
        self.bytes = BATCH_BYTES  # less when the topic was found to take less
        self.unknown = 0  # answers in a row that there is no such topic

    def __str__(self) -> str:
        return f"{self.target.topic}[{self.target.partition}]"

    def fill(self) -> Outgoing | None:
        """The next batch, of as much as waits and fits; None when nobody waits any more."""
        waiting = self.waiting
        now = int(time.time() * 1000)
        writer = BatchWriter(self.who, self.sequence, now, limit=self.bytes)
        parts: list[Part] = []
        while waiting and len(parts) < self.most:
            append = waiting[0]
            if append.future.done():  # its caller has gone
                waiting.popleft()
                continue
            start, messages = append.at, append.messages
            try:
                stop = writer.add(messages, start)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:  # not what a Message holds
                append.fail(error)
                self.put_back(parts)
                return self.fill()
            if stop > start:
                append.at = stop
                parts.append((append, start, stop))
            if stop < len(messages):
                break
            waiting.popleft()
        if not parts:
            return None
        self.batch = Outgoing(writer.bytes(), writer.count, parts, self.sequence, now)
        self.sequence = next_sequence(self.sequence, writer.count)
        return self.batch

    def put_back(self, parts: Sequence[Part]) -> None:
        for append, start, _ in reversed(parts):
            append.at = start
            if not self.waiting or self.waiting[0] is not append:
                self.waiting.appendleft(append)

    def landed(self, offset: int, at: int) -> None:
        """The batch in flight is durable from `offset` on; `at` is the broker's time, or negative."""
        batch, self.batch = self.batch, None
        assert batch is not None
        at = batch.time if at < 0 else at
        for append, start, stop in batch.parts:
            ack = append.ack
            if ack is None:
                ack = append.ack = Ack(offset, at)
            offset += stop - start
            if stop == len(append.messages) and not append.future.done():
                append.future.set_result(ack)
        self.most = _UNLIMITED
        self.unknown = 0

    def take_back(self) -> Outgoing:
        """The batch in flight was not appended, so its sequence numbers are free again."""
        batch, self.batch = self.batch, None
        assert batch is not None
        self.sequence = batch.sequence
        return batch

    def halve(self, batch: Outgoing) -> None:
        """Send the appends of a refused batch in smaller ones, to find out which is to blame."""
        self.most = len(batch.parts) // 2
        self.put_back(batch.parts)

    def forget(self) -> None:
        """The sequence is unknown, to us or to the broker: go on under a producer ID of the lane's own."""
        self.who, self.sequence = NOBODY, -1

    def fail_batch(self, error: TransportError) -> None:
        """Give up the batch in flight."""
        batch = self.batch
        assert batch is not None
        if batch.sent:
            self.batch = None
            self.forget()
        else:
            self.take_back()
        self.blame(batch, error)

    def blame(self, batch: Outgoing, error: TransportError) -> None:
        self.most = _UNLIMITED
        for append, _, _ in batch.parts:
            append.fail(error)

    def fail_all(self, error: TransportError) -> None:
        if self.batch is not None:
            self.fail_batch(error)
        for append in self.waiting:
            append.fail(error)
        self.waiting.clear()

    def expire(self, waited: float) -> None:
        """Fail what is overdue, after `waited` seconds."""
        now = time.monotonic()
        batch = self.batch
        if batch is not None and min(append.deadline for append, _, _ in batch.parts) < now:
            fate = "it is unknown whether the append landed" if batch.sent else "nothing was appended"
            self.fail_batch(RetriableError(f"{self}: no answer from the broker for {waited:.0f} s; {fate}"))
        while self.waiting and self.waiting[0].deadline < now:
            self.waiting.popleft().fail(RetriableError(f"{self}: the broker was away for {waited:.0f} s"))
