"""Appends to topics by key: outputs of runs, events that clients publish, requests for partitions owned elsewhere."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import structlog

from agnt5_engine.records.routing import murmur2, partition_of
from agnt5_engine.runs.outbox import JOURNAL, OUTCOMES
from agnt5_engine.settings import Settings
from agnt5_engine.transport.base import Ack, BadTopicError, Headers, Log, Message, TopicPartition, TopicSpec

log = structlog.stdlib.get_logger(__name__)

_RETENTION_MS = 7 * 86_400_000
#: Seconds after which it is looked up again how many partitions a topic has, as Kafka's own producers do.
_FRESH = 300.0


class Publisher:
    """Knows how many partitions topics have, and which partition a key goes to (Kafka's default partitioner)."""

    def __init__(self, log: Log, settings: Settings) -> None:
        self._log = log
        self._settings = settings
        self._ours = {settings.journal_topic: settings.partitions, settings.outcomes_topic: settings.partitions}
        self._found: dict[str, tuple[int, float]] = {}  # partitions of users' topics, and until when that counts

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Append all; returns when all are durable. `topic` may be one of the outbox's stand-ins."""
        name = {JOURNAL: self._settings.journal_topic, OUTCOMES: self._settings.outcomes_topic}.get(topic, topic)
        count = await self.partitions(name)
        groups: dict[int, list[Message]] = {}
        for message in messages:
            groups.setdefault(self._choose(message.key, count), []).append(message)
        await asyncio.gather(*(self._append(name, p, group) for p, group in groups.items()))

    async def publish_event(self, topic: str, value: bytes, key: bytes | None, headers: Headers) -> tuple[int, Ack]:
        """Append one event to a user's topic. Raises BadTopicError, TooLargeError, RetriableError."""
        partition = self._choose(key, await self.partitions(topic))
        return partition, await self._append(topic, partition, [Message(key, value, headers)])

    async def _append(self, topic: str, partition: int, messages: Sequence[Message]) -> Ack:
        try:
            return await self._log.append(TopicPartition(topic, partition), messages)
        except BadTopicError:
            self._found.pop(topic, None)  # it may have been made anew, with fewer partitions
            raise

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; on the embedded log a missing topic is made. Raises BadTopicError."""
        if (ours := self._ours.get(topic)) is not None:
            return ours
        count, until = self._found.get(topic, (0, 0.0))
        if time.monotonic() >= until:
            found = await self._log.topics([topic])
            if topic not in found:
                await self.make(topic)
                found = await self._log.topics([topic])
            count = found[topic].partitions
            self._found[topic] = (count, time.monotonic() + _FRESH)
        return count

    async def make(self, topic: str) -> None:
        """Make a user's topic, where the log is ours alone."""
        settings = self._settings
        if not settings.is_embedded:
            raise BadTopicError(f"topic {topic!r} does not exist on this cluster: create it, or correct the name")
        size = settings.max_payload_bytes + 64 * 1024
        await self._log.create([TopicSpec(topic, settings.partitions, "delete", _RETENTION_MS, size)], 1)
        log.info("topic.created", topic=topic, partitions=settings.partitions)

    @staticmethod
    def _choose(key: bytes | None, count: int) -> int:
        if key is None:
            return random.randrange(count)
        try:
            return partition_of(key.decode("ascii"), count)  # remembered, since engine keys come back
        except UnicodeDecodeError:
            return (murmur2(key) & 0x7FFFFFFF) % count
