"""A processor on the real broker inside the test's own process: quick to start, and open to look into."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agnt5.client.models import Run
from agnt5_engine.ports import StartRequest
from agnt5_engine.processor import Processor
from agnt5_engine.settings import Settings, load_settings
from agnt5_engine.slots import Slot


def settings_for(bootstrap: str, folder: Path, **settings: Any) -> Settings:
    """Settings under a name that no other test uses."""
    name = f"g{uuid.uuid4().hex[:8]}"
    given = {"topic_prefix": f"{name}.", "group": name, "partitions": 2, "session_timeout": 3, "data_dir": folder}
    return load_settings(broker=f"kafka://{bootstrap}", **(given | settings))


@asynccontextmanager
async def joined(settings: Settings, *, wait: bool = True, leave: bool = True) -> AsyncIterator[Processor]:
    """A processor that has joined, and by default has caught up."""
    slot = Slot(settings.data_dir)
    processor = Processor(settings, slot=slot, url=f"http://127.0.0.1:{1 + slot.number}")
    try:
        await processor.join()
        if wait:
            await ready(processor)
        yield processor
    finally:
        await processor.close(leave=leave)
        slot.release()


async def ready(processor: Processor) -> None:
    def caught_up() -> bool:
        return processor.trouble() is None and all(done for _, done in processor.readiness())

    await until(caught_up, lambda: (processor.trouble(), processor.readiness()))


async def until(true: Callable[[], Any], otherwise: Callable[[], Any] = lambda: "", seconds: float = 30) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, otherwise()
        await asyncio.sleep(0.02)


async def start(processor: Processor, workflow: str, input: bytes = b"{}") -> str:
    return (await processor.start(StartRequest(workflow, input, {"kind": "http"}))).run_id


async def runs(processor: Processor, workflow: str) -> list[Run]:
    return (await processor.runs(workflow=workflow, limit=1000)).items
