"""Users' code is told to stop when its partition is given up; the next owner does not wait for it for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

log = structlog.stdlib.get_logger(__name__)

_SECONDS = 5.0


async def stopped(tasks: Collection[asyncio.Task[None]], what: str) -> None:
    """Until the tasks, which have been cancelled, have ended. One that goes on all the same is left to itself: whatever
    comes of it is not recorded."""
    if tasks:
        _, going_on = await asyncio.wait(tasks, timeout=_SECONDS)
        if going_on:
            log.warning("partition.code_does_not_stop", what=what, count=len(going_on), seconds=_SECONDS)
