"""Every client test runs with both clients against every backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agnt5 import AsyncClient, Client
from agnt5.client.models import Event
from tests.client.backends import Backend, EmbeddedBackend, FakeBackend, KafkaBackend


class Caller:
    """Either client, awaited: `await caller.run(...)`, `await caller.stream(on_event, ...)`."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(self.client, Client):
                return await asyncio.to_thread(method, *args, **kwargs)
            return await method(*args, **kwargs)

        return call

    async def stream(self, on_event: Callable[[Event], None], *args: Any, **kwargs: Any) -> None:
        if isinstance(self.client, Client):
            client = self.client

            def drain() -> None:
                for event in client.stream(*args, **kwargs):
                    on_event(event)

            await asyncio.to_thread(drain)
        else:
            async for event in self.client.stream(*args, **kwargs):
                on_event(event)


@pytest.fixture(scope="module", params=["fake", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    directory: Path = tmp_path_factory.mktemp("backend")
    backend: Backend
    match request.param:
        case "fake":
            backend = FakeBackend(directory)
        case "embedded":
            backend = EmbeddedBackend(directory)
        case _:
            backend = KafkaBackend(directory, request.getfixturevalue("kafka"))
    yield backend
    backend.close()


@pytest.fixture(params=["sync", "async"])
async def client(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Caller]:
    if request.param == "sync":
        with Client(backend.urls, patience=30) as blocking:
            yield Caller(blocking)
    else:
        async with AsyncClient(backend.urls, patience=30) as client:
            yield Caller(client)
