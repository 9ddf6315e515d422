"""Sends what stands in a partition's outbox, and says so in the journal.

Rows for one target go together. Delivered is written once for all that became durable meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from agnt5_engine.records.rows import OutboxRow
from agnt5_engine.transport.base import BadTopicError, Message, RetriableError

log = structlog.stdlib.get_logger(__name__)

#: (topic, messages) -> when all of them are durable. The topic may be one of the outbox's stand-ins.
Publish = Callable[[str, Sequence[Message]], Awaitable[None]]

_BATCH = 1000
_LONGEST = 30.0  # seconds between two tries


class Sender:
    """Delivers outbox rows, at least once."""

    def __init__(
        self, outbox: Callable[[], Mapping[str, OutboxRow]], publish: Publish, delivered: Callable[[list[str]], None]
    ) -> None:
        self._outbox = outbox
        self._publish = publish
        self._delivered = delivered
        self._waiting: dict[str, dict[str, None]] = {}  # topic -> IDs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, asyncio.TimerHandle] = {}  # tried again when the topic may have been changed

    def send(self, id: str) -> None:
        row = self._outbox().get(id)
        if row is None:
            return
        self._waiting.setdefault(row.topic, {})[id] = None
        if row.topic not in self._tasks:
            self._tasks[row.topic] = asyncio.get_running_loop().create_task(self._drain(row.topic))

    async def _drain(self, topic: str) -> None:
        try:
            while waiting := self._waiting.pop(topic, None):
                ids = list(waiting)
                for i in range(0, len(ids), _BATCH):
                    await self._deliver(topic, ids[i : i + _BATCH])
        finally:
            del self._tasks[topic]

    async def _deliver(self, topic: str, ids: list[str]) -> None:
        rows = [row for id in ids if (row := self._outbox().get(id)) is not None]
        delay = 0.1
        while rows:
            try:
                await self._publish(
                    topic, [Message(r.key, r.value, tuple((h.name, h.value) for h in r.headers)) for r in rows]
                )
                self._delivered([r.id for r in rows])
                return
            except (RetriableError, BadTopicError) as e:
                # It stays in the outbox, and with it in the table: a topic that is missing today may be there tomorrow.
                log.warning("outbox.retry", topic=topic, rows=len(rows), error=str(e), delay=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST)
            except Exception as e:
                # One of them is refused for what it is. The others do not wait for it.
                if (half := len(rows) // 2) > 0:
                    await self._deliver(topic, [r.id for r in rows[:half]])
                    await self._deliver(topic, [r.id for r in rows[half:]])
                else:
                    id = rows[0].id
                    log.warning("outbox.refused", topic=topic, id=id, error=str(e) or repr(e), delay=_LONGEST)
                    self._refused[id] = asyncio.get_running_loop().call_later(_LONGEST, self._again, id)
                return

    def _again(self, id: str) -> None:
        self._refused.pop(id, None)
        self.send(id)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for alarm in self._refused.values():
            alarm.cancel()
