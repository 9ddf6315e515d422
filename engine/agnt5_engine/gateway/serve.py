"""Serving the gateway inside the processor's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from agnt5_engine.gateway.addresses import forget, note
from agnt5_engine.gateway.connection import BoundedConnection
from agnt5_engine.settings import Settings

PORTS_TRIED = 100
GRACE_SECONDS = 3

log = structlog.stdlib.get_logger(__name__)


class AddressError(OSError):
    """The address cannot be listened on. The message says what to do."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the processor's: uvicorn is one of several things that stop.
        yield


class HttpServer:
    """The HTTP side of a processor.

    `bind` first (a taken port is known before anything else starts), then `start`; `stop` lets waiting requests go.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._socket: socket.socket | None = None
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


def bind(settings: Settings) -> socket.socket:
    """A listening socket by the rules of AGNT5_HTTP: the default's next free port when the default is taken, while a
    taken port that someone chose is an AddressError."""
    host, port = settings.http_host, settings.http_port
    last: OSError | None = None
    for candidate in (port,) if settings.http_is_explicit else range(port, port + PORTS_TRIED):
        try:
            bound = _listen(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise AddressError(error.errno, f"AGNT5_HTTP={settings.http}: {error.strerror or error}") from None
            last = error
            continue
        if candidate != port:
            log.warning("http.next_port", taken=port, port=candidate)
        return bound
    remedy = "stop what listens there, or choose another port"
    what = f"AGNT5_HTTP={settings.http}: the port is taken"
    if not settings.http_is_explicit:
        what = f"the ports {port} to {port + PORTS_TRIED - 1} of {host} are all taken"
        remedy = "set AGNT5_HTTP to a free one"
    raise AddressError(last.errno if last else errno.EADDRINUSE, f"{what}; {remedy}")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
