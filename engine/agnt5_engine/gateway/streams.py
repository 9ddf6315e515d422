"""Server-sent events: a run's events as they happen, to a reader that may be slow, silent or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Send

from agnt5.client.models import Event
from agnt5_engine.gateway.metrics import STREAMS

CONTENT = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "Each event: its seq, its type, and the event as JSON",
            "properties": {
                "id": {"type": "string", "pattern": "^[0-9]+$"},
                "event": {"type": "string"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": "#/components/schemas/Event"},
                },
            },
            "required": ["id", "event", "data"],
        }
    }
}
"""What OpenAPI says of a stream."""

PING = b": still here\n\n"
PING_SECONDS = 15.0


class Stream(StreamingResponse):
    """A stream that frees what it reads from as soon as its reader has gone (see `connection.py` for one that stays and
    does not read)."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(chunks, headers=headers)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        STREAMS.inc()
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            STREAMS.dec()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_stream(events: AsyncGenerator[Event, None], closing: asyncio.Future[None]) -> Stream:
    """A response that streams `events` until they end or the processor is `closing` (the reader resumes elsewhere)."""
    return Stream(_encoded(events, closing), headers={"cache-control": "no-cache", "x-accel-buffering": "no"})


def encode(event: Event) -> bytes:
    """One event in the wire format: its type, its seq as ID, its JSON."""
    return format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(event.seq))


async def _encoded(events: AsyncGenerator[Event, None], closing: asyncio.Future[None]) -> AsyncGenerator[bytes, None]:
    # Something at once, so that proxies and readers see that the stream is open.
    yield b": open\n\n"
    upcoming: asyncio.Future[Event] | None = None
    try:
        while True:
            if upcoming is None:
                upcoming = asyncio.ensure_future(anext(events))
            await asyncio.wait((upcoming, closing), timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if upcoming.done():
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = None
                yield encode(event)
            elif closing.done():
                return
            else:
                yield PING
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait((upcoming,))
        await events.aclose()
