"""`/v1/workflows`: what can be started, and the three ways to start it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from agnt5.client.models import Run, Submitted, WorkflowInfo, WorkflowList
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.problems import ProblemError, RelayedError, invalid
from agnt5_engine.gateway.routing import answers, header, json_input, router, shaped
from agnt5_engine.gateway.runs import LONGEST_WAIT, last_event_id
from agnt5_engine.gateway.starting import start_from_body
from agnt5_engine.gateway.streams import CONTENT, event_stream
from agnt5_engine.ports import NotHere, Started, UnknownRun

START_HEADERS = [
    header("Idempotency-Key", "The same key (per workflow and session) with the same input means the same run."),
    header("X-Session-ID", "The session the run belongs to."),
    header("X-User-ID", "The user the run works for."),
]
_INPUT = json_input({"type": "object", "description": "The workflow's inputs, by name."}, required=False)

_NAME_TOLD = "The workflow's name."
Name = Annotated[str, Path(description=_NAME_TOLD)]
# Read by hand where every microsecond counts: on the routes that `shortcut.py` leads to.
SHORT = frozenset({"submit_workflow", "run_workflow"})
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": _NAME_TOLD}
_TIMEOUT = {
    "name": "timeout",
    "in": "query",
    "required": False,
    "schema": {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT},
    "description": "Seconds to wait before answering anyway.",
}
_SECONDS = TypeAdapter(Annotated[float, Field(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)])


def routes(gateway: Gateway) -> APIRouter:
    api = router("workflows")

    @api.post(
        "/v1/workflows/{name}/submit",
        status_code=202,
        responses=answers(Submitted, status=202, body=True, also=(404, 409)),
        openapi_extra={**_INPUT, "parameters": [_NAME, *START_HEADERS]},
    )
    async def submit_workflow(request: Request) -> Response:
        """Start a run: 202 once the request is durable."""
        started = await start_from_body(gateway, request, request.path_params["name"])
        return _accepted(started, started.status)

    @api.get("/v1/workflows", responses=answers(WorkflowList))
    async def list_workflows() -> Response:
        """The workflows that can be started, by name, with the JSON Schema of their inputs."""
        items: list[WorkflowInfo] = [gateway.catalog.info(name) for name in sorted(gateway.catalog.names())]
        return shaped(WorkflowList(items=items))

    @api.post(
        "/v1/workflows/{name}/run",
        responses={**answers(Run, body=True, also=(404, 409)), **answers(Submitted, status=202)},
        openapi_extra={**_INPUT, "parameters": [_NAME, _TIMEOUT, *START_HEADERS]},
    )
    async def run_workflow(request: Request) -> Response:
        """Start a run and wait for it: 200 with the run once it has ended (however it ended) or is paused; after
        `timeout`, 202 and where to look."""
        timeout = _timeout(request)
        started = await start_from_body(gateway, request, request.path_params["name"])
        try:
            run = await gateway.outlast(request, gateway.owners.finished(request, started.run_id), timeout)
        except TimeoutError:
            return _accepted(started, await _status(gateway, request, started))
        except ProblemError as error:
            # The run was started; whoever asked must be able to find it again.
            error.members.setdefault("run_id", started.run_id)
            raise
        response = shaped(run)
        response.headers["location"] = f"/v1/runs/{started.run_id}"
        return response

    @api.post(
        "/v1/workflows/{name}/stream",
        responses={**answers(None, body=True, also=(404, 409)), 200: STREAM},
        openapi_extra={**_INPUT, "parameters": [*START_HEADERS, LAST_EVENT_ID]},
    )
    async def stream_workflow(request: Request, name: Name) -> Response:
        """Start a run and stream its events until it ends. With an Idempotency-Key, the same request with
        Last-Event-ID goes on where a broken stream stopped."""
        after = last_event_id(request)
        started = await start_from_body(gateway, request, name)
        events = gateway.owners.follow(request, started.run_id, after)
        response = event_stream(events, gateway.closing)
        response.headers["location"] = f"/v1/runs/{started.run_id}"
        return response

    return api


STREAM: dict[str, Any] = {
    "description": "The run's events as they happen",
    "content": CONTENT,
}
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
    "description": "Only events after this seq.",
}


def _timeout(request: Request) -> float | None:
    """Raises ProblemError 422 for what is no number of seconds within bounds."""
    if not request.scope["query_string"] or (given := request.query_params.get("timeout")) is None:
        return None
    try:
        return _SECONDS.validate_python(given)
    except ValidationError as error:
        raise invalid([{"field": "query.timeout", "message": fault["msg"]} for fault in error.errors()]) from None


def _accepted(started: Started, status: str) -> Response:
    submitted = Submitted.model_construct(run_id=started.run_id, status=status, existing=started.existing)
    response = shaped(submitted, 202)
    response.headers["location"] = f"/v1/runs/{started.run_id}"
    return response


async def _status(gateway: Gateway, request: Request, started: Started) -> str:
    try:
        return (await gateway.owners.run(request, started.run_id)).status
    except (NotHere, UnknownRun, ProblemError, RelayedError):
        return started.status  # what is known: the run moves just now
