"""One processor in the test's own process, on an embedded log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agnt5.client.models import Run
from agnt5_engine.processor import Processor
from agnt5_engine.settings import Settings
from agnt5_engine.slots import Slot

PATIENCE = 30.0


@asynccontextmanager
async def processor(directory: Path, **settings: Any) -> AsyncIterator[Processor]:
    """A processor with what is registered now, ready; closed cleanly at the end."""
    given = {"broker": f"embedded://{directory}", "partitions": 2, "checkpoint_interval": 0.1} | settings
    slot = Slot(directory)
    made = Processor(Settings(**given), slot=slot, url="http://127.0.0.1:1")
    try:
        await made.join()
        await until(lambda: made.readiness() and all(up for _, up in made.readiness()))
        yield made
    finally:
        await made.close()
        slot.release()


async def until(check: Callable[[], Any]) -> Any:
    """Wait for `check` (plain, or giving an awaitable) to say something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


async def runs_of(engine: Processor, workflow: str, count: int) -> list[Run]:
    """The workflow's runs, oldest first, once there are `count` and all have ended."""

    async def ended() -> list[Run] | None:
        found = (await engine.runs(workflow=workflow, limit=1000)).items
        return list(reversed(found)) if len(found) >= count and all(run.ended for run in found) else None

    found: list[Run] = await until(ended)
    return found
