"""The gateway as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import httpx
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from agnt5_engine.gateway import (
    approvals,
    dead_letters,
    events,
    health,
    openapi,
    pages,
    problems,
    processors,
    runs,
    webhooks,
)
from agnt5_engine.gateway import workflows as workflow_routes
from agnt5_engine.gateway.body import RAW_BODY
from agnt5_engine.gateway.catalog import Catalog, RegistryCatalog
from agnt5_engine.gateway.context import ClientGoneError, Gateway
from agnt5_engine.gateway.door import Door
from agnt5_engine.gateway.owners import Owners
from agnt5_engine.gateway.routing import StrictRoute
from agnt5_engine.gateway.shortcut import Shortcut
from agnt5_engine.ports import Engine, NotHere
from agnt5_engine.settings import Settings


def create_app(
    engine: Engine,
    settings: Settings,
    workflows: Catalog | None = None,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """The HTTP API over `engine`. `workflows`: what can be started, by default all that is registered. `transport`
    replaces the network on the way to other processors (tests).

    `app.state.gateway` is the `Gateway`; its `close` lets every waiting request go, before a stop.
    """
    gateway = Gateway(engine, settings, workflows or RegistryCatalog(), Owners(engine, settings, transport))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            gateway.close()
            await gateway.owners.close()

    app = _App(
        title="AGNT5 on Kafka",
        version=_version(),
        description="Durable workflows. Every error is a problem document (RFC 9457).",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    problems.install(app)

    @app.exception_handler(NotHere)
    async def _not_here(request: Request, error: NotHere) -> Response:
        try:
            return await gateway.owners.pass_on(request, error, request.scope.get(RAW_BODY, b""))
        except problems.ProblemError as failure:
            return problems.problem(
                failure.status, failure.word, failure.detail, headers=failure.headers, **failure.members
            )

    @app.exception_handler(ClientGoneError)
    async def _gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=499)  # nobody reads it; it is counted

    # Starting runs is the hot path: its routes are tried first.
    starting = workflow_routes.routes(gateway)
    app.include_router(starting)
    for resource in (approvals, runs, events, webhooks, dead_letters, processors, health, pages):
        app.include_router(resource.routes(gateway))
    openapi.install(app, settings)
    app.add_middleware(Door, settings=settings)
    short = [r for r in starting.routes if isinstance(r, StrictRoute) and r.name in workflow_routes.SHORT]
    app.in_front = lambda rest: Shortcut(rest, short, app, through=lambda answer: Door(answer, settings))
    return app


class _App(FastAPI):
    """FastAPI with something in front of all its layers."""

    in_front: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.in_front(super().build_middleware_stack())


def _version() -> str:
    try:
        return version("agnt5-kafka")
    except PackageNotFoundError:
        return "0"
