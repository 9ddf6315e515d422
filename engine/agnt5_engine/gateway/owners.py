"""Reaching the owner of a run's partition: here, or one hop away, also when it moves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import quote

import httpx
import structlog
from httpx_sse import EventSource, SSEError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from agnt5.client.following import ENDS
from agnt5.client.models import Event, Run, Submitted
from agnt5_engine.gateway.hop import HEADER, Hop, HopSigner
from agnt5_engine.gateway.metrics import FORWARDED
from agnt5_engine.gateway.problems import ProblemError, RelayedError, no_owner, unavailable, unknown_run
from agnt5_engine.ports import Engine, NotHere, Started
from agnt5_engine.settings import Settings

POLL_SECONDS = 20.0  # one long poll of the owner; below the idle time-outs of usual proxies
PAUSE_SECONDS = 0.2  # between two looks for the owner of a partition that is changing hands

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection", "host", HEADER}
)
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "content-encoding", "date"}
_NOT_COPIED = frozenset(name.encode() for name in (*_HOP_BY_HOP, "content-length", "expect", "accept-encoding"))

Found = TypeVar("Found")

log = structlog.stdlib.get_logger(__name__)


class LostError(Exception):
    """The owner could not be reached, or has lost the partition itself: look again."""


class Owners:
    """How this gateway reaches runs that live elsewhere."""

    def __init__(self, engine: Engine, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._engine = engine
        self._signer = HopSigner(settings)
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    @property
    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            # No proxy from the environment: processors of one group talk directly.
            self._client = httpx.AsyncClient(
                transport=self._transport,
                timeout=httpx.Timeout(10.0, connect=2.0, pool=10.0),
                # Each that waits for a run there or follows one holds a connection: no number of them keeps others out.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                trust_env=False,
                follow_redirects=False,
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def hop(self, request: Request) -> Hop | None:
        """The hop this request has taken already, if any. Raises ProblemError 403 for a forged one."""
        return self._signer.read(request)

    # -- a whole request

    async def pass_on(self, request: Request, error: NotHere, body: bytes) -> Response:
        """Send a read or a command as it came to the owner, and its answer back."""
        if error.url is None or self.hop(request) is not None:
            return no_owner(error)
        path = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
        query = request.scope["query_string"]
        try:
            answer = await self.client.request(
                request.method,
                error.url + path.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else ""),
                content=body,
                headers=self._headers(request, Hop(), request.scope["path"]),
                timeout=httpx.Timeout(30.0, connect=2.0),
            )
        except httpx.TransportError as failure:
            FORWARDED.labels("lost").inc()
            raise self._unreachable(error, failure) from None
        FORWARDED.labels("answered").inc()
        headers = {name: value for name, value in answer.headers.items() if name not in _NOT_RETURNED}
        return Response(answer.content, answer.status_code, headers)

    # -- starting

    async def start(self, request: Request, url: str, path: str, body: bytes, hop: Hop) -> Started:
        """Have the owner at `url` start one run from this request's body. Raises RelayedError with its refusal,
        ProblemError 503 when its code lacks the workflow."""
        answer = await self._send(request, "POST", url, path, hop, body=body)
        if answer.status_code == 404:  # known here, or it would not have been passed on
            raise unavailable(
                f"The owner of this partition at {url} runs other code, without the workflow {hop.workflow}. Ask again."
            )
        if answer.status_code != 202:
            raise _relayed(answer)
        submitted = Submitted.model_validate_json(answer.content)
        return Started(submitted.run_id, submitted.status, submitted.existing)

    # -- one run, wherever it is

    async def run(self, request: Request, run_id: str) -> Run:
        """The run as it stands. Raises UnknownRun, ProblemError 503, RelayedError."""
        try:
            return await self._engine.run(run_id)
        except NotHere as error:
            if error.url is None or self.hop(request) is not None:
                raise
            return await self._run_at(request, error.url, run_id, None)

    async def finished(self, request: Request, run_id: str) -> Run:
        """Wait until the run has ended or is paused, following it from owner to owner. Cancel to stop waiting."""

        async def there(url: str) -> Run | None:
            try:
                run = await self._run_at(request, url, run_id, POLL_SECONDS)
            except RelayedError as refusal:
                if refusal.status == 503:
                    raise LostError from None
                raise
            return run if run.ended or run.status == "paused" else None

        return await self._followed(request, lambda: self._engine.finished(run_id), there)

    async def follow(self, request: Request, run_id: str, after: int) -> AsyncGenerator[Event, None]:
        """The run's events after seq `after` until it ends, each once, from owner to owner."""
        last = after
        hop = self.hop(request)
        run_has_ended = False
        while True:
            url: str | None = None
            try:
                async with aclosing(_closable(self._engine.follow(run_id, last))) as events:
                    async for event in events:
                        last = max(last, event.seq)
                        yield event
                return
            except NotHere as error:
                if hop is not None:
                    return  # the first processor sees the stream end before the run did, and looks again
                url = error.url
            if url is not None:
                ended = False
                try:
                    async with aclosing(self._events_at(request, url, run_id, last)) as events:
                        async for event in events:
                            last = max(last, event.seq)
                            ended = event.type in ENDS
                            yield event
                    if ended or run_has_ended:
                        return
                    # If it has ended meanwhile, one more stream brings the rest.
                    run_has_ended = (await self.run(request, run_id)).ended
                except (LostError, NotHere):
                    pass
                except (RelayedError, ProblemError) as refusal:
                    if refusal.status != 503:
                        raise
            await asyncio.sleep(PAUSE_SECONDS)

    # -- lists

    async def page_of(self, request: Request, url: str, query: Mapping[str, str]) -> httpx.Response:
        """The same list, of another processor's own runs alone. Raises ProblemError 503, RelayedError."""
        answer = await self._send(request, "GET", url, request.scope["path"], Hop(), query=query)
        if answer.status_code != 200:
            raise _relayed(answer)
        return answer

    # -- parts

    async def _followed(
        self, request: Request, here: Callable[[], Awaitable[Found]], there: Callable[[str], Awaitable[Found | None]]
    ) -> Found:
        while True:
            try:
                return await here()
            except NotHere as error:
                if self.hop(request) is not None:
                    raise
                if error.url is not None:
                    try:
                        found = await there(error.url)
                    except LostError:
                        pass
                    else:
                        if found is not None:
                            return found
                        continue
            await asyncio.sleep(PAUSE_SECONDS)

    async def _run_at(self, request: Request, url: str, run_id: str, wait: float | None) -> Run:
        query = {} if wait is None else {"timeout": str(wait)}
        answer = await self._send(request, "GET", url, f"/v1/runs/{run_id}", Hop(), query=query, patience=wait or 0)
        if answer.status_code == 404:
            raise unknown_run(run_id)
        if answer.status_code != 200:
            raise _relayed(answer)
        return Run.model_validate_json(answer.content)

    async def _events_at(self, request: Request, url: str, run_id: str, after: int) -> AsyncGenerator[Event, None]:
        path = f"/v1/runs/{run_id}/events"
        headers = self._headers(request, Hop(), path)
        headers["last-event-id"], headers["accept"] = str(after), "text/event-stream"
        outgoing = self.client.build_request(
            "GET", url + path, params={"follow": "1"}, headers=headers, timeout=httpx.Timeout(10.0, read=60.0)
        )
        try:
            answer = await self.client.send(outgoing, stream=True)
            try:
                if answer.status_code != 200:
                    await answer.aread()
                    raise _relayed(answer)
                async for sent in EventSource(answer).aiter_sse():
                    yield Event.model_validate_json(sent.data)
            finally:
                await answer.aclose()
        except (httpx.TransportError, SSEError, ValidationError) as failure:
            log.info("http.owner_lost", url=url, run_id=run_id, error=type(failure).__name__)
            raise LostError from None

    async def _send(
        self,
        request: Request,
        method: str,
        url: str,
        path: str,
        hop: Hop,
        *,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
        patience: float = 0.0,
    ) -> httpx.Response:
        try:
            answer = await self.client.request(
                method,
                url + quote(path),
                params=query or None,
                content=body,
                headers=self._headers(request, hop, path),
                timeout=httpx.Timeout(10.0 + patience, connect=2.0),
            )
        except httpx.TransportError as failure:
            FORWARDED.labels("lost").inc()
            log.info("http.owner_lost", url=url, path=path, error=type(failure).__name__)
            if method == "GET" and patience:
                raise LostError from None
            raise unavailable(
                f"The owner of this partition at {url} does not answer; whether it did this is not known. Ask again."
                if method == "POST"
                else f"The processor at {url} does not answer. Ask again."
            ) from None
        FORWARDED.labels("answered").inc()
        return answer

    def _headers(self, request: Request, hop: Hop, path: str) -> httpx.Headers:
        """The request's own headers, byte for byte (one that came twice means there what it means here), and ours."""
        named = {name.strip().encode("latin-1") for name in request.headers.get("connection", "").lower().split(",")}
        own = [(name, value) for name, value in request.headers.raw if name not in _NOT_COPIED and name not in named]
        return httpx.Headers([*own, (HEADER.encode(), self._signer.write(hop, path).encode())])

    def _unreachable(self, error: NotHere, failure: httpx.TransportError) -> Exception:
        log.info("http.owner_lost", url=error.url, partition=error.partition, error=type(failure).__name__)
        sent = not isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
        doubt = "; whether it did this is not known" if sent else ""
        return unavailable(f"The owner of partition {error.partition} does not answer{doubt}. Ask again in a moment.")


def _relayed(answer: httpx.Response) -> RelayedError:
    headers = {name: answer.headers[name] for name in ("retry-after", "www-authenticate") if name in answer.headers}
    return RelayedError(
        answer.status_code, answer.content, answer.headers.get("content-type", "application/problem+json"), headers
    )


async def _closable(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """As an async generator, whose `aclose` frees the engine's side at once."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
