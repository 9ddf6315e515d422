"""What comes in besides HTTP: events on the users' topics, and the dead letters of what could not be taken in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from agnt5 import registry
from agnt5.client.models import DeadLetter
from agnt5_engine.partition.owner import Owner
from agnt5_engine.partition.recovery import Place
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.starter import Starter
from agnt5_engine.transport.base import Batch, TopicPartition
from agnt5_engine.triggers.dead_letters import DeadLetters
from agnt5_engine.triggers.events import EventTriggers
from agnt5_engine.triggers.positions import place_trigger

if TYPE_CHECKING:
    from agnt5_engine.processor import Processor

log = structlog.stdlib.get_logger(__name__)

#: Trigger topics wait while more steps than this wait for a slot.
_BACKLOG = 5000
_BACKLOG_POLL = 0.02
#: Events that are taken in before their requests are made durable.
_CHUNK = 500


class Ingest:
    """Takes trigger records in, in order per partition; an offset counts as done once its requests are durable."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._triggers = EventTriggers(registry.workflows(), processor.settings)
        self._starter = Starter(processor.publisher, processor.local_owner)
        self._dead_letters = DeadLetters(processor.log, processor.publisher, processor.settings)

    def topics(self) -> list[str]:
        return self._triggers.topics()

    async def prepare(self) -> None:
        """See to the trigger topics: made where the log is ours, waited for elsewhere."""
        wanted = self.topics()
        found = await self._processor.log.topics(wanted) if wanted else {}
        for topic in wanted:
            if topic in found:
                continue
            if self._processor.settings.is_embedded:
                await self._processor.publisher.make(topic)
            else:
                log.warning("trigger.topic_missing", topic=topic, hint="it is picked up when it appears")

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Begin each trigger partition where it should."""
        p = self._processor
        for source in sorted(partitions):
            offset = await place_trigger(p.log, p.settings, source)
            p.membership.acked(source, offset)  # pins the position, so that a restart starts here too
            p.membership.seek(source, offset)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None: ...

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        records = batch.records
        for i in range(0, len(records), _CHUNK):
            while self._processor.backlog() > _BACKLOG:
                await asyncio.sleep(_BACKLOG_POLL)
            chunk = records[i : i + _CHUNK]
            requests = []
            for record in chunk:
                found, letters = await self._triggers.requests(source.topic, source.partition, record)
                requests += found
                for letter in letters:
                    await self._dead_letters.write(letter)
            if requests:
                await self._starter.start(requests)
            self._processor.membership.acked(source, chunk[-1].offset + 1)
        self._processor.membership.acked(source, batch.next_offset)

    def dispatch(self, owner: Owner, run: Run, pending: Pending, path: str) -> bool:
        """Hand a step of a queue to its pool. False: it is run here."""
        return False

    async def journal_dead_letter(self, place: Place, record: Any, detail: str) -> None:
        """A journal record that cannot be decoded: kept, told, and passed over."""
        await self._dead_letters.write_undecodable(place.journal, record, detail)

    async def dead_letters(self, limit: int, after: str | None) -> list[DeadLetter]:
        return await self._dead_letters.list(limit, after)

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        return await self._dead_letters.get(letter_id)

    async def redrive(self, letter_id: str) -> list[str]:
        return await self._dead_letters.redrive(letter_id, self._triggers, self._starter)

    async def close(self) -> None: ...
