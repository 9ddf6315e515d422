"""What comes in besides HTTP: events on the users' topics, and the dead letters of what could not be taken in."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from agnt5 import registry
from agnt5.client.models import DeadLetter
from agnt5_engine.partition.owner import Owner
from agnt5_engine.partition.recovery import Place
from agnt5_engine.publisher import Publisher
from agnt5_engine.queues.dispatch import Dispatcher
from agnt5_engine.settings import Settings
from agnt5_engine.starter import Starter
from agnt5_engine.transport.base import Batch, Log, Membership, Record, RetriableError, TopicPartition
from agnt5_engine.triggers.dead_letters import UNDECODABLE, DeadLetters, Letter
from agnt5_engine.triggers.events import EventTriggers
from agnt5_engine.triggers.positions import place_topic
from agnt5_engine.triggers.redrive import redriven
from agnt5_engine.triggers.schema_registry import SchemaRegistry

log = structlog.stdlib.get_logger(__name__)

#: Seconds between looks at whether there is room for more.
_POLL = 0.005
#: Finding out where a trigger's partitions begin may take so long before others are no longer kept waiting for it.
_PLACE_SECONDS = 5.0
#: Seconds before positions that could not be pinned are looked up again.
_PIN_SECONDS = 0.2
#: What is being taken in may take so long to become durable when its partition is given up.
_SETTLE_SECONDS = 2.0
#: Events that are taken in before their requests are made durable.
_CHUNK = 100


class Host(Protocol):
    """What taking events in needs of the processor."""

    settings: Settings
    log: Log
    publisher: Publisher

    @property
    def membership(self) -> Membership: ...

    def local_owner(self, run_id: str) -> Owner | None: ...

    def busy(self) -> bool: ...


class Ingest:
    """Takes trigger records in, in order per partition; an offset counts as done once its requests are durable."""

    def __init__(self, processor: Host) -> None:
        settings = processor.settings
        self._processor = processor
        self._registry = SchemaRegistry(settings.schema_registry_url) if settings.schema_registry_url else None
        self._triggers = EventTriggers(registry.workflows(), self._registry, settings.max_payload_bytes)
        self._starter = Starter(processor.publisher, processor.local_owner)
        self.queues = Dispatcher(processor.log, settings, registry.find_function)
        self._placed: set[TopicPartition] = set()  # given to us, and begun or about to be
        self._placing: dict[asyncio.Task[None], TopicPartition] = {}
        self._inside: dict[TopicPartition, asyncio.Future[None]] = {}
        self._missing: set[str] = set()
        self._dead_letters = DeadLetters(processor.log, settings.dead_letters_topic, settings.partitions)

    def topics(self) -> list[str]:
        """Topics that some workflow here is triggered by."""
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
                self._missing.add(topic)
                log.warning("trigger.topic_missing", topic=topic, hint="it is picked up when it appears")

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Begin each trigger partition that is new here where it should. The others go on.

        Returns when that is done, or when it takes its time: a partition that has no leader just now must not keep the
        journal and the other partitions waiting."""
        mine = partitions - self._placed
        self._placed = set(partitions)
        for source in sorted(mine):
            self._processor.membership.pause(source)
            task = asyncio.get_running_loop().create_task(self._place(source))
            self._placing[task] = source
            task.add_done_callback(self._placing.pop)
        if self._placing:
            done, _ = await asyncio.wait(self._placing, timeout=_PLACE_SECONDS)
            for task in done:
                if not task.cancelled():
                    task.result()

    async def _place(self, source: TopicPartition) -> None:
        p, loop, topic = self._processor, asyncio.get_running_loop(), source.topic
        begun, appeared = loop.time(), topic in self._missing
        while True:
            try:
                found = await place_topic(p.log, p.settings, topic, [source.partition], appeared=appeared)
                if len(found) > 1:
                    await p.membership.pin(found)
                break
            except RetriableError as e:
                # The group is being rearranged, perhaps: whoever has the partition then looks again.
                log.debug("trigger.pin_failed", topic=topic, error=str(e))
                await asyncio.sleep(_PIN_SECONDS)
            except Exception as e:
                if loop.time() - begun < _PLACE_SECONDS:
                    raise  # whoever started us should know
                log.error("trigger.position_failed", topic=topic, error=str(e) or repr(e))
                await asyncio.sleep(_PLACE_SECONDS)
        p.membership.acked(source, found[source])  # pins the position, so that a restart starts here too
        p.membership.seek(source, found[source])
        p.membership.resume(source)
        self._missing.discard(topic)

    async def _place_no_more(self, partitions: frozenset[TopicPartition]) -> None:
        """Stop looking for where these partitions begin; a position that is nearly found is waited for, and pinned."""
        given_up = [task for task, source in self._placing.items() if source in partitions]
        if not given_up:
            return
        _, late = await asyncio.wait(given_up, timeout=_SETTLE_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Take no more of these; what is being taken in may become durable first, so that it is in the last
        checkpoints."""
        await self._place_no_more(partitions)
        self._placed -= partitions
        inside = [self._inside[source] for source in partitions if source in self._inside]
        if inside:
            await asyncio.wait(inside, timeout=_SETTLE_SECONDS)

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        """Take a batch in; returns when all that came of it is durable."""
        done = self._inside[source] = asyncio.get_running_loop().create_future()
        try:
            await self._triggers.prepare(batch.records)
            for i in range(0, len(batch.records), _CHUNK):
                while self._processor.busy() and source in self._placed:
                    await asyncio.sleep(_POLL)
                if source not in self._placed:
                    return  # whoever has it next gets the rest
                await self._take(source, batch.records[i : i + _CHUNK])
            self._processor.membership.acked(source, batch.next_offset)
        finally:
            del self._inside[source]
            done.set_result(None)

    async def _take(self, source: TopicPartition, records: list[Record]) -> None:
        requests = []
        letters = []
        for record in records:
            found = self._triggers.requests(source, record)
            requests += found.requests
            letters += found.letters
        if letters:
            await self._put(letters)
        if requests:
            await self._starter.start(requests)
        self._processor.membership.acked(source, records[-1].offset + 1)

    async def _put(self, letters: list[Letter]) -> None:
        for letter in letters:
            log.warning(
                "dead_letter", reason=letter.reason, detail=letter.detail, workflow=letter.workflow,
                topic=letter.source.topic, partition=letter.source.partition, offset=letter.record.offset,
            )  # fmt: skip
        while True:
            try:
                await self._dead_letters.put(letters)
                return
            except RetriableError as e:
                log.warning("dead_letter.retry", error=str(e))
                await asyncio.sleep(0.5)

    async def journal_dead_letter(self, place: Place, record: Record, detail: str) -> None:
        """A journal record that cannot be decoded: kept, told, and passed over."""
        await self._put([Letter(UNDECODABLE, detail, place.journal, record)])

    # ------------------------------------------------------------------ dead letters, for people

    async def dead_letters(self, limit: int, after: str | None) -> list[DeadLetter]:
        return [stored.view() for stored in await self._dead_letters.list(limit, after)]

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        return (await self._dead_letters.find(letter_id)).view()

    async def redrive(self, letter_id: str) -> list[str]:
        """Put the original through its way in again. Raises LookupError, Refused."""
        letter = (await self._dead_letters.find(letter_id)).letter
        original = await self._dead_letters.original(letter)
        again = await redriven(letter, original, self._triggers, self._processor.settings.journal_topic)
        if again.journal is not None and again.message is not None:
            await self._processor.log.append(again.journal, [again.message])
            return [again.run_id] if again.run_id is not None else []
        if again.letters:
            await self._put(again.letters)
        return await self._starter.start(again.requests)

    async def close(self) -> None:
        await self._place_no_more(frozenset(self._placed))
        await self.queues.close()
        if self._registry is not None:
            await self._registry.close()
