"""Routes that refuse what they do not know, and say in OpenAPI everything they may answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from agnt5_engine.gateway.problems import MEDIA_TYPE, invalid

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    202: "Accepted",
    400: "The request broke off or is not HTTP",
    401: "No key, or not one of ours",
    403: "The key may not do this, or the request came from a foreign site",
    404: "Not found",
    408: "The body took too long",
    409: "It conflicts with what is there",
    413: "Too large",
    415: "Not JSON",
    422: "Not valid: each field is named",
    431: "Headers too large",
    500: "Unexpected",
    503: "Not just now: ask again after Retry-After",
}
# By reference: FastAPI would build a validator for each of some three hundred of them.
PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ALWAYS = (401, 403, 422, 431, 500, 503)
_WITH_BODY = (400, 408, 413, 415)


class StrictRoute(APIRoute):
    """A route that refuses query parameters it does not have, and those given twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            self.check_query(request)
            return await handler(request)

        return strict

    def check_query(self, request: Request) -> None:
        """Raises ProblemError 422 for a query parameter that is unknown or comes twice."""
        if request.scope["query_string"]:
            _refuse_unknown(request.query_params, self._known)

    @cached_property
    def _known(self) -> frozenset[str]:
        """Its query parameters: FastAPI's, and those that its function reads by hand."""
        by_hand = (self.openapi_extra or {}).get("parameters", ())
        read = {parameter["name"] for parameter in by_hand if parameter["in"] == "query"}
        return frozenset(read | {parameter.alias for parameter in self.dependant.query_params})


def _refuse_unknown(given: QueryParams, known: frozenset[str]) -> None:
    faults = []
    for name in given:
        if name not in known:
            there_is = f"; there is {', '.join(sorted(known))}" if known else "; this takes none"
            faults.append({"field": f"query.{name[:80]}", "message": f"unknown parameter{there_is}"})
        elif len(given.getlist(name)) > 1:
            faults.append({"field": f"query.{name}", "message": "given more than once"})
    if faults:
        raise invalid(faults)


def router(tag: str) -> APIRouter:
    return APIRouter(tags=[tag], route_class=StrictRoute)


def answers(
    shape: type[BaseModel] | None, *, status: int = 200, body: bool = False, also: tuple[int, ...] = ()
) -> Responses:
    """The `responses` of a route: its shape and the problems it may answer with (`body`: also those of reading one)."""
    responses: Responses = {}
    if shape is not None:
        responses[status] = {"model": shape, "description": _MEANINGS.get(status, "Done")}
    for code in sorted({*_ALWAYS, *(_WITH_BODY if body else ()), *also}):
        responses[code] = {"description": _MEANINGS[code], "content": PROBLEM}
    return responses


def json_input(schema: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` for a body that the route reads by itself."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": dict(schema)}}}}


def header(name: str, description: str) -> dict[str, Any]:
    """An OpenAPI header parameter that the route reads by itself."""
    schema = {"type": "string", "minLength": 1, "maxLength": 255}
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def shaped(value: BaseModel, status: int = 200) -> Response:
    """A shape as a response, serialised once."""
    return Response(value.__pydantic_serializer__.to_json(value), status, media_type="application/json")
