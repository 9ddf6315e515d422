"""One gateway, or two that reach each other, over the fake engine and without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agnt5_engine.gateway.app import create_app
from agnt5_engine.settings import Settings
from tests.gateway.fake_engine import Cluster, FakeEngine
from tests.gateway.flows import workflows


class Network(httpx.AsyncBaseTransport):
    """Hosts that are ASGI applications. One that is down refuses connections."""

    def __init__(self) -> None:
        self.hosts: dict[str, httpx.ASGITransport] = {}
        self.requests: list[tuple[str, str]] = []

    def add(self, host: str, app: FastAPI) -> None:
        self.hosts[host] = httpx.ASGITransport(app=app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.host, request.url.path))
        if request.url.host not in self.hosts:
            raise httpx.ConnectError(f"{request.url.host} is down")
        return await self.hosts[request.url.host].handle_async_request(request)


class Processor:
    """One fake processor with its gateway and a client that talks to it."""

    def __init__(self, engine: FakeEngine, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.engine = engine
        self.app = app
        self.http = client


class Group:
    """Fake processors over one cluster."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = Cluster(workflows())
        self.network = Network()
        self.settings = Settings(partitions=self.cluster.partitions, **settings)
        self.processors: list[Processor] = []

    def add(self, name: str) -> Processor:
        engine = self.cluster.join(f"http://{name}")
        app = create_app(engine, self.settings, self.cluster.catalog, transport=self.network)
        self.network.add(name, app)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        processor = Processor(engine, app, httpx.AsyncClient(transport=transport, base_url=f"http://{name}"))
        self.processors.append(processor)
        return processor

    async def close(self) -> None:
        for processor in self.processors:
            processor.app.state.gateway.close()
            await processor.app.state.gateway.owners.close()
            await processor.http.aclose()
        await self.cluster.close()


MakeGroup = Callable[..., Group]


@pytest.fixture
async def make_group(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeGroup]:
    monkeypatch.chdir(tmp_path)
    groups: list[Group] = []

    def make(*names: str, **settings: Any) -> Group:
        group = Group(**settings)
        groups.append(group)
        for name in names or ("one",):
            group.add(name)
        return group

    yield make
    for group in groups:
        await group.close()


@pytest.fixture
def one(make_group: MakeGroup) -> Processor:
    return make_group("one").processors[0]
