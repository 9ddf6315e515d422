"""An engine in this process, on the embedded log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agnt5_engine.ports import StartRequest
from agnt5_engine.processor import Processor
from agnt5_engine.settings import load_settings
from agnt5_engine.slots import Slot


class Engine:
    """A processor that can be stopped and started again over the same data."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = load_settings(
            broker=f"embedded://{folder}", data_dir=folder, partitions=2, checkpoint_interval=0.1, **settings
        )
        self.processor: Processor

    async def start(self) -> Engine:
        self.slot = Slot(self.settings.data_dir)
        self.processor = Processor(self.settings, slot=self.slot, url="http://127.0.0.1:1")
        await self.processor.join()
        while not (ready := self.processor.readiness()) or not all(done for _, done in ready):
            await asyncio.sleep(0.01)
        return self

    async def stop(self, *, crash: bool = False) -> None:
        """`crash`: without a last checkpoint, as after kill -9 (what was acked is in the log, nothing else)."""
        if crash:
            for owner in self.processor._owners.values():
                owner.checkpoints._written = owner.state.applied
                owner.checkpoints._unwritten = None

                async def nothing(*, clean: bool = False) -> None: ...

                owner.checkpoints.write = nothing  # type: ignore[method-assign]
        await self.processor.close()
        self.slot.release()

    async def restart(self, *, crash: bool = False) -> None:
        await self.stop(crash=crash)
        await self.start()

    async def submit(self, workflow: str, input: bytes = b"{}", **fields: Any) -> str:
        started = await self.processor.start(StartRequest(workflow, input, {"kind": "http"}, **fields))
        return started.run_id

    async def run(self, workflow: str, input: bytes = b"{}", **fields: Any) -> Any:
        run_id = await self.submit(workflow, input, **fields)
        return await asyncio.wait_for(self.processor.finished(run_id), 30)

    async def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        async with asyncio.timeout(seconds):
            while not (found := await condition()):
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def engine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = await Engine(tmp_path / "data").start()
    yield engine
    await engine.stop()
