"""Bulk reading for recovery: straight fetches, committed records only, the next piece under way while one is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiokafka import errors
from aiokafka.protocol.fetch import FetchRequest

from agnt5_engine.transport.base import Batch, OffsetGoneError, TopicPartition
from agnt5_engine.transport.kafka.batch import records_of
from agnt5_engine.transport.kafka.wire import Attempt, Channel, Wire, unless_final

_PIECE = 4 * 2**20  # bytes asked for at once; a larger single batch comes whole
_WAIT_MS = 100  # what is read is there already; this only guards against asking in a tight loop
_COMMITTED = 1
_OUT_OF_RANGE = 1


async def read(wire: Wire, source: TopicPartition, start: int, end: int) -> AsyncIterator[Batch]:
    """See `Log.read`."""
    position = start
    ahead: asyncio.Task[Any] | None = None
    try:
        while position < end:
            if ahead is None:
                data, aborted = await _fetch(wire, source, position)
            else:
                data, aborted = await ahead
                ahead = None
            tail = _next_offset(data, position)
            if position < tail < end:
                ahead = asyncio.get_running_loop().create_task(_fetch(wire, source, tail))
            batch = records_of(data, aborted, position, end)
            position = batch.next_offset
            if batch.records:
                yield batch
            elif position >= end:
                yield Batch([], end)
            if ahead is not None and position != tail:  # never, but a wrong guess must not skip anything
                await _drop(ahead)
                ahead = None
    finally:
        if ahead is not None:
            await _drop(ahead)


async def _drop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def _fetch(wire: Wire, source: TopicPartition, position: int) -> tuple[bytes, list[tuple[int, int]] | None]:
    topic, partition = source
    request = FetchRequest(_WAIT_MS, 1, 64 * 2**20, _COMMITTED, [(topic, [(partition, position, _PIECE)])])
    attempt = Attempt(wire)
    while True:
        node = await wire.find_leader(source)
        try:
            response = await wire.send(node, request, Channel.READ)
        except errors.KafkaError as error:
            problem = unless_final(error)
        else:
            _, code, _, _, start, aborted, *_, data = only(response)
            if code == 0:
                return data, aborted
            if code == _OUT_OF_RANGE:
                raise OffsetGoneError(
                    f"{topic}[{partition}] does not hold offset {position} (any more): its first is {max(start, 0)}"
                )
            problem = unless_final(errors.for_code(code)())
        await attempt.failed(problem)
        await wire.refresh(topic)


def only(response: Any) -> tuple[Any, ...]:
    """What a fetch of one partition was answered."""
    ((_, (answer,)),) = response.topics
    partition, code, highwater, stable, *rest = answer
    if response.API_VERSION >= 5:
        start, aborted, *_, data = rest
    else:
        start, (aborted, data) = -1, rest
    return partition, code, highwater, stable, start, aborted, data


def _next_offset(data: bytes, position: int) -> int:
    """The offset after the last whole batch of a fetched piece, from the batch headers alone."""
    at, size = 0, len(data)
    while size - at >= 61:  # a batch's header
        length = 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        if size - at < length:
            break
        position = int.from_bytes(data[at : at + 8], "big") + int.from_bytes(data[at + 23 : at + 27], "big") + 1
        at += length
    return position
