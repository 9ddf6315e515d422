"""Requests to processors: one at a time, or over many connections at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

_JSON = {"content-type": "application/json"}


class RequestFailed(Exception):
    """A request was not answered as it should have been."""


def session(connections: int = 0) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """A client with at most so many connections (0: no limit), and no hurry."""
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=900))


async def post(client: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> Any:
    """The answer's JSON. Raises RequestFailed."""
    async with client.post(url, data=json.dumps(body), headers=_JSON) as response:
        answer = await response.read()
        if response.status not in (200, 202):
            raise RequestFailed(f"{url} answered {response.status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)


async def run(client: aiohttp.ClientSession, url: str, workflow: str, **input: Any) -> Any:
    """Run a workflow to its end; its output. Raises RequestFailed when it did not complete."""
    answer = await post(client, f"{url}/v1/workflows/{workflow}/run", input)
    if answer.get("status") != "completed":
        raise RequestFailed(f"{workflow} ended as {answer}")
    return answer["output"]


async def posts(
    client: aiohttp.ClientSession, requests: Sequence[tuple[str, Mapping[str, Any]]], connections: int
) -> list[float]:
    """Send all, so many at once; how long each took in seconds."""
    todo = iter(requests)
    took: list[float] = []

    async def send() -> None:
        for url, body in todo:
            began = time.perf_counter()
            await post(client, url, body)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(send() for _ in range(connections)))
    return took


async def submit(url: str, workflow: str, inputs: Sequence[Mapping[str, Any]], connections: int) -> list[float]:
    """Submit a run for each input; how long each request took in seconds."""
    async with session(connections) as client:
        target = f"{url}/v1/workflows/{workflow}/submit"
        return await posts(client, [(target, one) for one in inputs], connections)
