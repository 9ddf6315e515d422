"""The only module that knows the HTTP library: sends a `Call`, listens to a stream, in both worlds.

Several addresses are tried in turn: the one that last could answer first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource, SSEError

from agnt5.client.calls import ANSWER_SECONDS, Call, Lost, Reply, retry_after
from agnt5.client.errors import refusal
from agnt5.client.models import Problem

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""A stream pings every 15 s; one that is silent for this long is dead."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class LostError(Exception):
    """A stream could not be opened, or broke."""

    def __init__(self, loss: Lost) -> None:
        super().__init__(loss.reason)
        self.loss = loss


class Addresses:
    """Where the API is, and which address to ask next."""

    def __init__(self, url: str | Sequence[str]) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("give at least one url, such as http://127.0.0.1:8080")
        for one in urls:
            if not one.startswith(("http://", "https://")):
                raise ValueError(f"url must begin with http:// or https://, not {one!r}")
        self._urls = [one.rstrip("/") for one in urls]
        # A proxy of the environment is for the world outside, not for a processor on this machine.
        self.proxied = not any(urlsplit(one).hostname in _LOOPBACK for one in urls)

    def url(self, call: Call) -> str:
        return self._urls[0] + call.path

    def answered(self, call: Call, url: str, reply: Reply) -> Reply:
        """What `url` said. Should it be unable to do it just now, another may be able: its broker may be there."""
        if retry_after(reply) is not None:
            self._turn(call, url)
        return reply

    def lost(self, call: Call, url: str, error: Exception) -> Lost:
        """There was no answer from `url`."""
        self._turn(call, url)
        told = str(error) or type(error).__name__
        return Lost(f"{call.method} {url}: no answer: {told}", not isinstance(error, _UNSENT))

    def _turn(self, call: Call, url: str) -> None:
        """Ask the next address from now on, unless another call has turned to it already."""
        first, *others = self._urls
        if url == first + call.path:
            self._urls = [*others, first]  # one assignment: threads share a client


def key_header(api_key: str | None) -> dict[bytes, bytes]:
    """The header that bears the key, as the engine reads it. A key from a file often ends its line."""
    return {} if api_key is None else {b"x-api-key": api_key.strip().encode(errors="surrogateescape")}


def _encoded(call: Call) -> dict[bytes, bytes]:
    # As UTF-8: a session or a user may have any name, but for what no header can hold.
    headers = {name.encode(): value.encode() for name, value in call.headers.items()}
    for name, value in headers.items():
        if value != value.strip() or any(byte < 32 or byte == 127 for byte in value):
            fault = {"field": f"header.{name.decode()}", "message": "must be printable, without spaces at its ends"}
            detail = f"{fault['field']}: {fault['message']}"
            raise refusal(
                Problem.model_validate({"title": "Invalid", "status": 422, "detail": detail, "errors": [fault]})
            )
    return headers


def _timeout(call: Call) -> httpx.Timeout:
    return httpx.Timeout(call.wait + call.answer, connect=CONNECT_SECONDS)


_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Whoever waits for a run or follows one holds a connection meanwhile: no number of them keeps other calls out."""

_STREAM_TIMEOUT = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=SILENCE_SECONDS)


class SyncWire:
    def __init__(self, url: str | Sequence[str], api_key: str | None, transport: httpx.BaseTransport | None) -> None:
        self._addresses = Addresses(url)
        self._http = httpx.Client(
            headers=key_header(api_key), limits=_LIMITS, transport=transport, trust_env=self._addresses.proxied
        )

    def send(self, call: Call) -> Reply | Lost:
        url = self._addresses.url(call)
        try:
            got = self._http.request(
                call.method,
                url,
                params=call.query or None,
                headers=_encoded(call),
                content=call.body,
                timeout=_timeout(call),
            )
        except httpx.TransportError as error:
            return self._addresses.lost(call, url, error)
        return self._addresses.answered(call, url, Reply(got.status_code, got.headers, got.content))

    @contextmanager
    def listen(self, call: Call) -> Iterator[tuple[Reply, Iterator[str]]]:
        """Raises LostError when it cannot be opened, and from the events when it breaks."""
        url = self._addresses.url(call)
        try:
            with self._http.stream(
                call.method, url, params=call.query, headers=_encoded(call), content=call.body, timeout=_STREAM_TIMEOUT
            ) as got:
                body = b"" if got.status_code == 200 else got.read()
                reply = self._addresses.answered(call, url, Reply(got.status_code, got.headers, body))
                yield reply, self._events(call, url, got)
        except httpx.TransportError as error:
            raise LostError(self._addresses.lost(call, url, error)) from None

    def _events(self, call: Call, url: str, got: httpx.Response) -> Iterator[str]:
        try:
            for event in EventSource(got).iter_sse():
                yield event.data
        except (httpx.TransportError, SSEError) as error:
            raise LostError(self._addresses.lost(call, url, error)) from None

    def close(self) -> None:
        self._http.close()


class AsyncWire:
    def __init__(
        self, url: str | Sequence[str], api_key: str | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._addresses = Addresses(url)
        self._http = httpx.AsyncClient(
            headers=key_header(api_key), limits=_LIMITS, transport=transport, trust_env=self._addresses.proxied
        )

    async def send(self, call: Call) -> Reply | Lost:
        url = self._addresses.url(call)
        try:
            got = await self._http.request(
                call.method,
                url,
                params=call.query or None,
                headers=_encoded(call),
                content=call.body,
                timeout=_timeout(call),
            )
        except httpx.TransportError as error:
            return self._addresses.lost(call, url, error)
        return self._addresses.answered(call, url, Reply(got.status_code, got.headers, got.content))

    @asynccontextmanager
    async def listen(self, call: Call) -> AsyncIterator[tuple[Reply, AsyncIterator[str]]]:
        """As SyncWire.listen."""
        url = self._addresses.url(call)
        try:
            async with self._http.stream(
                call.method, url, params=call.query, headers=_encoded(call), content=call.body, timeout=_STREAM_TIMEOUT
            ) as got:
                body = b"" if got.status_code == 200 else await got.aread()
                reply = self._addresses.answered(call, url, Reply(got.status_code, got.headers, body))
                yield reply, self._events(call, url, got)
        except httpx.TransportError as error:
            raise LostError(self._addresses.lost(call, url, error)) from None

    async def _events(self, call: Call, url: str, got: httpx.Response) -> AsyncIterator[str]:
        try:
            async for event in EventSource(got).aiter_sse():
                yield event.data
        except (httpx.TransportError, SSEError) as error:
            raise LostError(self._addresses.lost(call, url, error)) from None

    async def close(self) -> None:
        await self._http.aclose()
