"""Where the reading of a trigger's partition starts (invariant 16), and what that skips.

The first assignment decides and pins it with a commit. After that the group's offset is the truth; partitions that
appear later, and triggers whose offsets the group has lost, start at the earliest record, because run IDs derived from
events make a second reading harmless within retention.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

import structlog

from agnt5_engine.settings import Settings
from agnt5_engine.transport.base import Log, RetriableError, TopicPartition

log = structlog.stdlib.get_logger(__name__)

#: Seconds for which a partition may seem shorter than what was read of it.
_SETTLES = 5.0
_LOOK_AGAIN = 0.5
#: The partition whose owner decides where a topic begins.
_DECIDES = 0

From = Literal["committed", "earliest", "latest", "time"]


class Position(NamedTuple):
    """The offset to consume next, and how it was found. `skipped`: how many events before it will not be seen."""

    offset: int
    found: From
    skipped: int


def rule(committed: int | None, *, topic_known: bool, start: Literal["latest", "earliest"] | datetime) -> From:
    """How the position is found. `topic_known`: the group has read some partition of the topic before, or has lost its
    offsets; `start`: AGNT5_TRIGGER_START."""
    if committed is not None:
        return "committed"
    if topic_known:
        return "earliest"
    return "time" if isinstance(start, datetime) else start


async def place_topic(
    log_: Log, settings: Settings, topic: str, partitions: Iterable[int], *, appeared: bool = False
) -> dict[TopicPartition, int]:
    """The offsets at which to start reading these partitions of a trigger's topic. Waits for a broker that is away.

    Where a topic begins that the group has never read is decided by whoever has its first partition: the answer has
    all of its partitions then, and the caller pins them together (`Membership.pin`). The others wait for that, so that
    nobody changes what another goes by already, or takes a partition for an addition.
    `appeared`: the topic came into being while the trigger was waiting for it, so its first events are wanted."""
    partitions = set(partitions)
    delay = 0.2
    while True:
        try:
            found = await log_.topics([topic])
            count = found[topic].partitions if topic in found else 0
            ours = [TopicPartition(topic, n) for n in partitions]
            new = await _unread(log_, settings.group, ours) and await _unread(
                log_, settings.group, [TopicPartition(topic, n) for n in range(count)]
            )
            if new and count and _DECIDES not in partitions:
                await _decided(log_, settings.group, ours)
                continue
            known = appeared or await offsets_lost(log_, settings)
            places = {}
            for partition in sorted(partitions.union(range(count) if new else ())):
                source = TopicPartition(topic, partition)
                place = await position(
                    log_, settings.group, source, partitions=count, start=settings.trigger_start, topic_known=known
                )
                places[source] = place.offset
            return places
        except RetriableError as e:
            log.warning("trigger.position.retry", topic=topic, error=str(e))
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5)


async def _unread(log_: Log, group: str, sources: Iterable[TopicPartition]) -> bool:
    for source in sources:
        if await log_.committed(group, source) is not None:
            return False
    return True


async def _decided(log_: Log, group: str, sources: Iterable[TopicPartition]) -> None:
    """Wait until one of them has a committed offset: the owner of the first partition pins them all. Not for ever."""
    wait, waited = 0.02, 0.0
    while waited < _SETTLES and await _unread(log_, group, sources):
        await asyncio.sleep(wait)
        waited += wait
        wait = min(wait * 2, _LOOK_AGAIN)


async def offsets_lost(log_: Log, settings: Settings) -> bool:
    """Whether the group's offsets are gone while its work is not: a checkpoint writes changelog and offset in one
    transaction, so a changelog without an offset means that the broker has forgotten the group."""
    for partition in range(settings.partitions):
        first, end = await log_.bounds(TopicPartition(settings.changelog_topic, partition))
        if end > first:
            journal = TopicPartition(settings.journal_topic, partition)
            return await log_.committed(settings.group, journal) is None
    return False


async def position(
    log_: Log,
    group: str,
    source: TopicPartition,
    *,
    partitions: int,
    start: Literal["latest", "earliest"] | datetime,
    topic_known: bool = False,
) -> Position:
    """Where to start reading `source`, one of its topic's `partitions`. The caller seeks there and acknowledges it at
    once, so that it is committed before anything is read. Raises RetriableError."""
    committed = await log_.committed(group, source)
    first, end = await log_.bounds(source)
    if committed is None and not topic_known:
        for other in range(partitions):
            if other != source.partition and await log_.committed(group, source._replace(partition=other)) is not None:
                topic_known = True
                committed = await log_.committed(group, source)  # whoever saw the topic first pins all of it at once
                break
    found = rule(committed, topic_known=topic_known, start=start)
    if found == "committed":
        assert committed is not None
        waited = 0.0
        while committed > end and waited < _SETTLES:
            # A new leader may know less of the end for a moment; only a topic that stays short was made anew.
            await asyncio.sleep(_LOOK_AGAIN)
            waited += _LOOK_AGAIN
            first, end = await log_.bounds(source)
        return _committed(source, committed, first, end)
    if found == "earliest":
        offset = first
    elif found == "latest":
        offset = end
    else:
        assert isinstance(start, datetime)
        offset = max(first, await log_.offset_at(source, round(start.timestamp() * 1000)))
    skipped = offset - first
    log.info(
        "trigger.position", topic=source.topic, partition=source.partition, start=found, offset=offset, skipped=skipped
    )
    if skipped:
        log.warning(
            "trigger.skips",
            topic=source.topic,
            partition=source.partition,
            events=skipped,
            why="AGNT5_TRIGGER_START",
            hint="set AGNT5_TRIGGER_START=earliest before the first start to have them too",
        )
    return Position(offset, found, skipped)


def _committed(source: TopicPartition, committed: int, first: int, end: int) -> Position:
    if committed < first:
        # Retention was faster than the group: what is gone is gone, but never silently.
        log.error(
            "trigger.lost", topic=source.topic, partition=source.partition, events=first - committed,
            why="the topic deleted them before they were read",
        )  # fmt: skip
        return Position(first, "committed", first - committed)
    if committed > end:
        # The topic was made anew, or lost records; its new ones are not to be missed.
        log.error(
            "trigger.topic_is_shorter", topic=source.topic, partition=source.partition, committed=committed, end=end,
            start=first,
        )  # fmt: skip
        return Position(first, "earliest", 0)
    return Position(committed, "committed", 0)
