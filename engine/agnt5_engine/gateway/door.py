"""The door: what every request passes before a route sees it. Plain ASGI, because it is on the hot path.

Order: header limits, origin, key, scope; then the route; then counting. An exception nobody expected becomes a problem
document here and a log line with its traceback.
"""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agnt5_engine import api_keys
from agnt5_engine.gateway.metrics import REQUESTS, SECONDS
from agnt5_engine.gateway.problems import problem
from agnt5_engine.settings import Settings

HEADER_BYTES = 32 * 1024
HEADER_COUNT = 100

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/", "/ui.css", "/ui.js", "/docs.js"})
"""What needs no key even when keys are set: probes, and the pages' static files (their data needs one)."""

WEBHOOKS = "/v1/webhooks/"
KEYLESS = "agnt5.keyless"
"""Set in the scope of a webhook that came without a key: its signature has to speak for it."""

log = structlog.stdlib.get_logger(__name__)


def needed_scope(method: str, path: str) -> api_keys.Scope:
    """What a key must allow for this call."""
    if method in ("GET", "HEAD"):
        return "read"
    if path.startswith("/v1/workflows/resume/") or "/signals/" in path:
        return "answer"
    if path.startswith(("/v1/workflows/", "/v1/events", WEBHOOKS)):
        return "start"
    return "admin"


class Door:
    """ASGI middleware in front of every route."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        own_host = urlsplit(settings.advertised_url or "").hostname
        self._is_ours = lru_cache(256)(partial(_is_ours, own_host=own_host))
        self._seconds = lru_cache(256)(SECONDS.labels)
        self._requests = lru_cache(1024)(REQUESTS.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._seconds(_route(scope)).observe(time.perf_counter() - begun)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, counted)
            else:
                await refusal(scope, receive, counted)
        except Exception:
            # The traceback goes to the log, never to the client: it may quote values.
            log.exception("http.failed", method=scope["method"], route=_route(scope))
            if status:
                raise  # the answer has begun; the server closes the connection so that nobody takes it for whole
            detail = "This was not expected; the processor's log says where it happened (event http.failed)."
            await problem(500, "internal", detail)(scope, receive, counted)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._requests(method, _route(scope), status).inc()

    def _refusal(self, scope: Scope) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > HEADER_COUNT or sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
            detail = f"The headers are more than {HEADER_BYTES} bytes or {HEADER_COUNT} lines."
            return problem(431, "headers-too-large", detail, headers={"connection": "close"})
        path: str = scope["path"]
        if self._settings.api_keys:
            return None if path in OPEN_PATHS else self._key_refusal(scope, path)
        return self._origin_refusal(headers)

    def _key_refusal(self, scope: Scope, path: str) -> Response | None:
        presented = presented_key(scope["headers"])
        if presented is None:
            if path.startswith(WEBHOOKS) and scope["method"] == "POST":
                scope[KEYLESS] = True
                return None
            return no_key("This needs a key: send it as X-API-KEY, or as Authorization: Bearer.")
        scopes = self._settings.scopes_of(presented)
        if scopes is None:
            return no_key("This key is not one of ours.")
        wanted = needed_scope(scope["method"], path)
        if wanted not in scopes:
            return problem(403, "scope", f"This key may not do that: it lacks the scope {wanted!r}.", scope=wanted)
        return None

    def _origin_refusal(self, headers: list[tuple[bytes, bytes]]) -> Response | None:
        """Without keys only this machine is listened to; then a web page of another site, open in a browser on this
        machine, must not be able to act either: neither directly nor by a name that it points at 127.0.0.1."""
        for name, value in headers:
            if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                return problem(403, "cross-site", "A page of another site may not do that.")
            if name == b"host" and not self._is_ours(value):
                detail = "This host name is not ours: use 127.0.0.1, or set AGNT5_ADVERTISED_URL or AGNT5_API_KEYS."
                return problem(403, "foreign-host", detail)
        return None


def _is_ours(host: bytes, own_host: str | None) -> bool:
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return False
    if "." not in name or name == own_host or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def presented_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The API key of a request: X-API-KEY, else a bearer token."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("utf-8", "surrogateescape")  # as settings read keys, and digest them
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip().decode("utf-8", "surrogateescape")
    return bearer


def no_key(detail: str) -> Response:
    """401 as RFC 9110 wants it."""
    return problem(401, "no-key", detail, headers={"www-authenticate": 'Bearer realm="agnt5"'})


def keyless(request: Request) -> bool:
    return bool(request.scope.get(KEYLESS))


def _route(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path", "none"))
