"""Serving the gateway inside the processor's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from agnt5_engine.gateway.addresses import forget, note
from agnt5_engine.gateway.connection import BoundedConnection
from agnt5_engine.gateway.listening import bind
from agnt5_engine.settings import Settings

GRACE_SECONDS = 3

log = structlog.stdlib.get_logger(__name__)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the processor's: uvicorn is one of several things that stop.
        yield


class HttpServer:
    """The HTTP side of a processor.

    `bind` first, unless it is given a socket that is `bound`, then `start`; `stop` lets waiting requests go.
    """

    def __init__(self, settings: Settings, bound: socket.socket | None = None) -> None:
        self._settings = settings
        self._socket = bound
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._app: FastAPI | None = None
        self._note: Path | None = None

    def bind(self) -> str:
        """Take the port; returns the URL at which others reach this processor. Raises AddressError."""
        self._socket = bind(self._settings)
        return self.url

    @property
    def url(self) -> str:
        if self._socket is None:
            raise RuntimeError("not bound yet: call bind() first")
        return self._settings.advertised_url_for(self._socket.getsockname()[1])

    async def start(self, app: FastAPI) -> None:
        """Serve `app` until `stop`, and note the address in the data directory."""
        if self._socket is None:
            self.bind()
        assert self._socket is not None
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._app = app
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="agnt5.http")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the HTTP server ended before it began")
            await asyncio.sleep(0.005)
        try:
            self._note = note(self._settings.data_dir, self._local_url())
        except OSError as error:
            log.warning("http.address_not_noted", data_dir=str(self._settings.data_dir), error=str(error))
        log.info("http.listening", url=self.url)

    async def stop(self) -> None:
        """Answer what waits (503, ask again), close the connections, free the port."""
        if self._note is not None:
            forget(self._note)
            self._note = None
        if self._app is not None:
            self._app.state.gateway.close()
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
            self._server = self._task = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _local_url(self) -> str:
        """The address for commands on this machine."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
