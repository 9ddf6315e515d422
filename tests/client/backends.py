"""What the client tests run against: something that serves the API at some addresses, and can be shaken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import httpx

from agnt5_engine.gateway.app import create_app
from agnt5_engine.gateway.serve import HttpServer
from agnt5_engine.records.routing import murmur2
from agnt5_engine.settings import Settings
from agnt5_engine.transport import open_log
from agnt5_engine.transport.base import TopicSpec
from tests.gateway.fake_engine import Cluster, FakeEngine
from tests.gateway.flows import workflows

Result = TypeVar("Result")


class Backend(Protocol):
    """`urls`: where the API is. `shake` takes the processor of a run away without warning and brings another (or the
    same again) in its place; it returns once the group is whole."""

    @property
    def urls(self) -> list[str]: ...

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


class RealProcessor:
    """One `agnt5 processor` with the test's workflows, as a process group of its own."""

    def __init__(
        self, directory: Path, name: str, broker: str, *, flows: Path | None = None, **environment: str
    ) -> None:
        self._flows = flows or FLOWS
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self._directory = directory
        self._log = directory / f"{name}.log"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("AGNT5_")}
        self._environment |= {"AGNT5_BROKER": broker, "AGNT5_HTTP": address, "AGNT5_DATA_DIR": str(directory / "data")}
        self._environment |= environment

    def start(self) -> None:
        agnt5 = Path(sys.executable).with_name("agnt5")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [agnt5, "processor", self._flows],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        self._process.wait(30)

    def get(self, path: str) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + path, trust_env=False)
        return None

    def whole(self, partitions: int) -> bool:
        """Whether it is ready, and knows an owner of every partition."""
        ready, members = self.get("/readyz"), self.get("/v1/processors")
        if ready is None or members is None or ready.status_code != 200:
            return False
        return sum(len(member["partitions"]) for member in members.json()["items"]) == partitions

    def await_whole(self, partitions: int) -> None:
        """Raises AssertionError with its log when it does not become so; it is ended then."""
        deadline = time.monotonic() + 60
        while not self.whole(partitions):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.end(signal.SIGKILL)
                raise AssertionError(self._log.read_text()[-4000:])
            time.sleep(0.05)


class EmbeddedBackend:
    """One processor on the embedded engine. Shaking it is kill -9 and a new start."""

    def __init__(self, directory: Path) -> None:
        self._processor = RealProcessor(directory, "processor", f"embedded://{directory / 'data'}")
        self._processor.start()
        self._processor.await_whole(8)

    @property
    def urls(self) -> list[str]:
        return [self._processor.url]

    def shake(self, run_id: str) -> None:
        self._processor.end(signal.SIGKILL)
        self._processor.start()
        self._processor.await_whole(8)

    def close(self) -> None:
        self._processor.end(signal.SIGTERM)


class KafkaBackend:
    """Two processors on a real broker. Shaking is kill -9 of a run's owner; the other takes over."""

    def __init__(self, directory: Path, bootstrap: str) -> None:
        asyncio.run(_create_topic(bootstrap, "user.signed_up"))
        unique = uuid4().hex[:8]
        settings = {"AGNT5_TOPIC_PREFIX": f"client{unique}.", "AGNT5_GROUP": f"client{unique}", "AGNT5_PARTITIONS": "4"}
        settings["AGNT5_REPLICATION"] = "1"
        self._processors = [
            RealProcessor(directory, name, f"kafka://{bootstrap}", AGNT5_TRIGGER_START="earliest", **settings)
            for name in ("one", "two")
        ]
        for processor in self._processors:
            processor.start()
        self._await_whole()

    @property
    def urls(self) -> list[str]:
        return [processor.url for processor in self._processors]

    def _await_whole(self) -> None:
        try:
            for processor in self._processors:
                processor.await_whole(4)
        except AssertionError:
            self.close()
            raise

    def shake(self, run_id: str) -> None:
        partition = (murmur2(run_id.partition(".")[0].encode()) & 0x7FFFFFFF) % 4
        [members] = [answer.json()["items"] for answer in [self._processors[0].get("/v1/processors")] if answer]
        [url] = [member["url"] for member in members if partition in member["partitions"]]
        [owner] = [processor for processor in self._processors if processor.url == url]
        [other] = [processor for processor in self._processors if processor.url != url]
        owner.end(signal.SIGKILL)
        other.await_whole(4)
        owner.start()
        self._await_whole()

    def close(self) -> None:
        for processor in self._processors:
            processor.end(signal.SIGTERM)


async def _create_topic(bootstrap: str, name: str) -> None:
    """A topic of the company's own: there before the engine is."""
    settings = Settings(broker=f"kafka://{bootstrap}")
    log = open_log(settings.broker, settings)
    try:
        if not await log.topics([name]):
            await log.create([TopicSpec(name, 2, "delete", None, 2**20)], 1)
    finally:
        await log.close()


FLOWS = Path(__file__).with_name("flows.py")
