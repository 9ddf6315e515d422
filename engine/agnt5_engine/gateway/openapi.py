"""The OpenAPI document: what FastAPI derives, with problems as what they are and keys where they are wanted."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from agnt5.client.models import Event, Problem
from agnt5_engine.gateway.door import OPEN_PATHS, WEBHOOKS
from agnt5_engine.settings import Settings

_KEYS: list[dict[str, list[str]]] = [{"key": []}, {"bearer": []}]


def install(app: FastAPI, settings: Settings) -> None:
    """Give `app` its document, made when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for shape in (Problem, Event):  # named by reference only
                document["components"]["schemas"][shape.__name__] = shape.model_json_schema(mode="serialization")
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _settle(operation)
                    if settings.api_keys:
                        operation["security"] = _security(path)
            if settings.api_keys:
                document["components"]["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _settle(operation: dict[str, Any]) -> None:
    for answer in operation["responses"].values():
        content = answer.get("content", {})
        if content.get("application/json", {}).get("schema") == {}:
            # FastAPI's default for a route that makes its own response.
            del content["application/json"]


def _security(path: str) -> list[dict[str, list[str]]]:
    if path in OPEN_PATHS:
        return []
    return [{}, *_KEYS] if path.startswith(WEBHOOKS) else _KEYS
