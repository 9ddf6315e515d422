"""One HTTP connection, bounded: a head that comes too slowly or is too large, trailers that do not end, and a peer that
does not read, end it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agnt5_engine.gateway.problems import MEDIA_TYPE

HEAD_SECONDS = 10.0
HEAD_BYTES = 128 * 1024
"""More than the door lets pass, so that what is only somewhat too large still gets the door's answer."""
STALLED_SECONDS = 60.0
"""How long a peer may leave what was sent to it unread."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with the bounds it lacks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._got_on = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._got_on = False
        super().data_received(data)
        # What neither ends a head nor brings a body is more of a head, or of trailers: the parser holds lines of both.
        if (self._in_head or not self._got_on) and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                if self._in_head:
                    self._refuse(431, "headers-too-large", f"The head of a request is at most {HEAD_BYTES} bytes.")
                else:
                    self.transport.close()  # the request may have been answered already

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are no headers: nothing that stands before us has looked at them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._got_on = True
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._got_on = True
        self._head_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "not-http", msg)

    def _await_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(408, "too-slow", f"The head of the request did not arrive within {HEAD_SECONDS:.0f} s.")
        else:
            self.transport.close()

    def _refuse(self, status: int, word: str, detail: str) -> None:
        title = HTTPStatus(status).phrase
        body = to_json({"type": f"urn:agnt5:problem:{word}", "title": title, "status": status, "detail": detail})
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._stop_timers()
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
