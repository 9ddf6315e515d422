"""Turns requests into durable RunRequested records: through the owner's appender where it is here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agnt5_engine.partition.appender import AppenderClosed
from agnt5_engine.partition.owner import Owner
from agnt5_engine.ports import StartRequest
from agnt5_engine.publisher import Publisher
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import RunRequested
from agnt5_engine.records.routing import new_command_id, routing_key
from agnt5_engine.runs.outbox import JOURNAL
from agnt5_engine.serving.local import run_requested
from agnt5_engine.transport.base import Message, RetriableError

_AGAIN_SECONDS = 0.2


class Starter:
    """Starts many runs at once. A request that is given twice starts one run, since its ID derives from it."""

    def __init__(self, publisher: Publisher, local_owner: Callable[[str], Owner | None]) -> None:
        self._publisher = publisher
        self._local_owner = local_owner

    async def start(self, requests: Sequence[StartRequest]) -> list[str]:
        """The run IDs, once every request is durable in the journal. Waits for a broker that is away."""
        records = [run_requested(request, new_command_id()) for request in requests]
        owners: dict[Owner, list[RunRequested]] = {}
        elsewhere: list[RunRequested] = []
        for record in records:
            owner = self._local_owner(record.run_id)
            if owner is None:
                elsewhere.append(record)
            else:
                owner.append(record.run_id, record)
                owners.setdefault(owner, []).append(record)
        for owner, mine in owners.items():
            try:
                await owner.flushed()
            except AppenderClosed:
                elsewhere += mine
        while elsewhere:
            try:
                await self._publisher.publish(
                    JOURNAL, [Message(routing_key(r.run_id).encode(), encode(r)) for r in elsewhere]
                )
                break
            except RetriableError:
                await asyncio.sleep(_AGAIN_SECONDS)
        return [record.run_id for record in records]
