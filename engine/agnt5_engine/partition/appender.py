"""One partition's way into its journal: what is appended in one turn of the loop goes as one batch, one batch in
flight.

While a batch is on its way the next one fills, so throughput follows the load and latency stays one round trip.
Nothing is given up: a batch whose fate is unknown is sent again, and applying tells the second copy from the first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from agnt5_engine.partition.timers import steady_ms
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import JournalRecord
from agnt5_engine.transport.base import Ack, Log, Message, RetriableError, TopicPartition, make_message

log = structlog.stdlib.get_logger(__name__)

#: A batch stays below what the log takes at once, so that it lands as one piece and its offsets are contiguous.
_BATCH_RECORDS = 500  # applied in one go on the ack, runs rebuilt from their rows among them
_BATCH_BYTES = 700_000


class AppenderClosed(Exception):
    """The partition was given up; what was not acked may or may not have landed."""


class Appender:
    """Appends records and hands those of each acked batch back: `acked(ack, records)`, in order."""

    def __init__(
        self,
        log_: Log,
        target: TopicPartition,
        acked: Callable[[Ack, list[JournalRecord]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._log = log_
        self._target = target
        self._acked = acked
        self._failed = failed
        self._messages: list[Message] = []
        self._records: list[JournalRecord] = []  # what the messages hold
        self._sending: asyncio.Task[None] | None = None
        self._in_flight: tuple[list[Message], list[JournalRecord]] = ([], [])
        self.sent_at = 0  # by `steady_ms`; of the batch that is in flight or was acked last
        self._brought = 0  # so many of them the log has brought before the ack
        self._closed = False
        self._given = 0  # records ever taken
        self._durable = 0  # records ever acked
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def append(self, key: str, record: JournalRecord) -> None:
        """Write the record soon; it is applied when the ack comes."""
        self._given += 1
        self._messages.append(make_message(key.encode(), encode(record)))
        self._records.append(record)
        if self._sending is None and not self._closed:
            self._sending = asyncio.get_running_loop().create_task(self._send_all())

    def sent(self, value: bytes | None) -> JournalRecord | None:
        """The next record in flight, if these are its bytes, which the log has brought before the ack: it need not be
        decoded. None: they are another's."""
        (messages, records), at = self._in_flight, self._brought
        if at == len(messages) or messages[at].value != value:
            return None
        self._brought = at + 1
        return records[at]

    async def _send_all(self) -> None:
        try:
            while self._messages and not self._closed:
                messages, records = self._next()
                self._in_flight, self._brought = (messages, records), 0
                ack = await self._send(messages)
                if self._closed:
                    return
                self._acked(ack, records)
                self._durable += len(records)
                while self._waiting and self._waiting[0][0] <= self._durable:
                    _, waiter = self._waiting.popleft()
                    if not waiter.done():
                        waiter.set_result(None)
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self._failed(e)
        finally:
            self._sending = None

    def _next(self) -> tuple[list[Message], list[JournalRecord]]:
        messages, records, size = self._messages, self._records, 0
        for i, message in enumerate(messages):
            size += len(message.value or b"") + 100
            if i and (size > _BATCH_BYTES or i >= _BATCH_RECORDS):
                self._messages, self._records = messages[i:], records[i:]
                return messages[:i], records[:i]
        self._messages, self._records = [], []
        return messages, records

    async def _send(self, messages: list[Message]) -> Ack:
        while True:
            self.sent_at = steady_ms()
            try:
                return await self._log.append(self._target, messages)
            except RetriableError as e:
                log.warning("journal.append.retry", partition=self._target.partition, error=str(e))
                await asyncio.sleep(0.2)

    @property
    def unacked(self) -> int:
        return self._given - self._durable

    async def flushed(self) -> None:
        """Until everything given so far is durable and applied. Raises AppenderClosed when that will not
        be known here."""
        if self._closed:
            raise AppenderClosed
        if self._durable < self._given:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self._given, waiter))
            await waiter

    async def close(self) -> None:
        self._closed = True
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(AppenderClosed())
                waiter.exception()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
