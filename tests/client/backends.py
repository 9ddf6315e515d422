"""What the client tests run against: something that serves the API at some addresses, and can be shaken."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agnt5_engine.gateway.app import create_app
from agnt5_engine.gateway.serve import HttpServer
from agnt5_engine.settings import Settings
from gateway.fake_engine import Cluster, FakeEngine
from gateway.flows import workflows

Result = TypeVar("Result")


class Backend(Protocol):
    """`urls`: where the API is. `shake` takes the processor of a run away without warning and brings another (or the
    same again) in its place; it returns once the group is whole."""

    urls: list[str]

    def shake(self, run_id: str) -> None: ...

    def close(self) -> None: ...


class FakeBackend:
    """Three gateways over the fake engine, in a thread of their own."""

    def __init__(self, directory: Path, api_keys: str = "") -> None:
        self._directory = directory
        self._keys = api_keys
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._numbers = itertools.count()
        self._servers: dict[FakeEngine, HttpServer] = {}
        self._do(self._begin())

    @property
    def urls(self) -> list[str]:
        return [engine.url for engine in self._servers]

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _begin(self) -> None:
        self.cluster = Cluster(workflows())
        for _ in range(3):
            await self._add()

    async def _add(self) -> None:
        settings = Settings(
            http="127.0.0.1:0",
            partitions=self.cluster.partitions,
            data_dir=self._directory / str(next(self._numbers)),
            api_keys=self._keys,
        )
        server = HttpServer(settings)
        engine = self.cluster.join(server.bind())
        await server.start(create_app(engine, settings, self.cluster.catalog))
        self._servers[engine] = server

    def shake(self, run_id: str) -> None:
        self._do(self._shake(run_id))

    async def _shake(self, run_id: str) -> None:
        engine = self.cluster.owner[self.cluster.partition_of(run_id)]
        assert engine is not None
        self.cluster.leave(engine, None)
        await self._servers.pop(engine).stop()
        await asyncio.sleep(0.3)  # nobody owns its partitions
        self.cluster.share()
        await self._add()

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers.values():
                await server.stop()
            await self.cluster.close()

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


BACKENDS: dict[str, type[FakeBackend]] = {"fake": FakeBackend}
