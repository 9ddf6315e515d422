"""A copy of the table of a partition that somebody else owns, kept near the end of its changelog.

When this process becomes the owner, all that is left to restore is what came since the last look. The copy lives where
the owner's table would (invariant 14: it is a cache either way), so it is closed before an owner opens it.
"""

from __future__ import annotations

import asyncio

import structlog

from agnt5_engine.partition.recovery import Place, follow
from agnt5_engine.partition.table import Table
from agnt5_engine.transport.base import OffsetGoneError, RetriableError

log = structlog.stdlib.get_logger(__name__)

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 5.0


class Standby:
    """Follows one partition's changelog from its making to `close`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.position: int | None = None  # None: it is being made
        self._table: Table | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        partition = self._place.journal.partition
        log.info("standby.started", partition=partition)
        try:
            await self._follow(partition)
        finally:
            self._close_table()

    async def _follow(self, partition: int) -> None:
        while True:
            try:
                if self._table is None:
                    self._table = Table(self._place.folder)
                self.position, _ = await follow(self._place, self._table)
            except (RetriableError, OffsetGoneError) as e:  # compaction may take away what is being read
                log.debug("standby.waits", partition=partition, error=str(e))
            except Exception as e:
                # It only saves time: whoever takes the partition over restores it by himself.
                log.warning("standby.failed", partition=partition, error=repr(e))
                self._close_table()  # after a failed write it takes no more: opened anew it does
                await asyncio.sleep(_AGAIN_SECONDS)
            await asyncio.sleep(_LOOK_SECONDS)

    async def close(self) -> None:
        """Returns when the table is closed; when this is interrupted, it is closed all the same."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def _close_table(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None
