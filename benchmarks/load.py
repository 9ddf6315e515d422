"""Requests to processors: one at a time, or over many connections at once."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
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


def post_now(url: str, body: Mapping[str, Any]) -> None:
    """One request, without an event loop. Raises RequestFailed."""
    request = urllib.request.Request(url, json.dumps(body).encode(), _JSON, method="POST")
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        with error:
            raise RequestFailed(f"{url} answered {error.code}: {error.read()[:500].decode()}") from None
    except OSError as error:
        raise RequestFailed(f"{url}: {error}") from None


async def run(client: aiohttp.ClientSession, url: str, workflow: str, **input: Any) -> Any:
    """Run a workflow to its end; its output. Raises RequestFailed when it did not complete."""
    answer = await post(client, f"{url}/v1/workflows/{workflow}/run", input)
    if answer.get("status") != "completed":
        raise RequestFailed(f"{workflow} ended as {answer}")
    return answer["output"]


async def posts(
    client: aiohttp.ClientSession, url: str, inputs: Sequence[Mapping[str, Any]], connections: int
) -> list[float]:
    """Send a request for each input, so many at once; how long each took in seconds."""
    todo = iter(inputs)
    took: list[float] = []

    async def send() -> None:
        for body in todo:
            began = time.perf_counter()
            await post(client, url, body)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(send() for _ in range(connections)))
    return took


async def submit(url: str, workflow: str, inputs: Sequence[Mapping[str, Any]], connections: int) -> list[float]:
    """Submit a run for each input; how long each request took in seconds."""
    async with session(connections) as client:
        return await posts(client, f"{url}/v1/workflows/{workflow}/submit", inputs, connections)
