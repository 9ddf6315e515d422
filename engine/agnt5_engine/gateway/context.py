"""What the routes of one gateway share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from agnt5_engine.gateway.catalog import Catalog
from agnt5_engine.gateway.owners import Owners
from agnt5_engine.gateway.problems import unavailable
from agnt5_engine.ports import Engine
from agnt5_engine.settings import Settings

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """Nobody waits for this answer any more."""


@dataclass(slots=True)
class Gateway:
    """The engine of this process, its settings and workflows, and the way to other processors."""

    engine: Engine
    settings: Settings
    catalog: Catalog
    owners: Owners
    _closing: asyncio.Future[None] | None = None

    @property
    def closing(self) -> asyncio.Future[None]:
        """Done once the processor stops: whatever waits for a run lets go, and its client asks elsewhere."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        return self._closing

    def close(self) -> None:
        if not self.closing.done():
            self.closing.set_result(None)

    async def outlast(self, request: Request, work: Awaitable[Result], seconds: float | None) -> Result:
        """The result of `work`, unless the client leaves (ClientGoneError), the processor stops (ProblemError 503)
        or `seconds` pass (TimeoutError) before: then it is cancelled."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((task, gone, self.closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGoneError
            if self.closing.done():
                raise unavailable("This processor is stopping; ask again.")
            raise TimeoutError
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
