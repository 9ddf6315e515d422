"""Who else is in the group, and where: kept at hand for requests that must be forwarded."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from agnt5_engine.transport.base import Member, Membership, RetriableError, TransportError

#: Seconds after which the group is asked again though nothing has changed for this process: a member may have moved.
PERIOD = 1.0

log = structlog.stdlib.get_logger(__name__)


class Others:
    """The group's members as it last told them."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._members: list[Member] = []
        self._changed = asyncio.Event()
        self.silence: str | None = None
        """Why the group did not answer when it was last asked; None when it did."""

    def changed(self) -> None:
        """This process was given other partitions, so the others have others too: ask at once.

        Until that is answered, requests for partitions that went elsewhere are refused, since nobody here knows where.
        """
        self._changed.set()

    async def watch(self) -> None:
        """Ask the group now and again."""
        while True:
            self._changed.clear()
            try:
                self._members = await self._membership.members()
                self.silence = None
            except RetriableError as e:
                self.silence = str(e)
                log.debug("members.unknown", error=str(e))
            except TransportError as e:
                log.warning("members.unknown", error=str(e))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), PERIOD)

    def url(self, partition: int, besides: str) -> str | None:
        """Where the owner of a partition listens, if that is known and is not at `besides`."""
        return next((m.url for m in self._members if partition in m.partitions and m.url != besides), None)

    async def members(self) -> list[Member]:
        return self._members or await self._membership.members()
