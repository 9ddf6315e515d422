"""`/v1/runs`: reading runs and commanding them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from agnt5.client.models import Event, EventList, Result, Run, RunList, RunStatus, Status
from agnt5_engine.gateway.body import shaped_body
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.cursors import decode_cursor, encode_cursor, milliseconds, unusable_cursor
from agnt5_engine.gateway.gather import other_parts, part
from agnt5_engine.gateway.problems import invalid, unknown_run
from agnt5_engine.gateway.routing import answers, header, json_input, router, shaped
from agnt5_engine.gateway.starting import named_header
from agnt5_engine.gateway.streams import CONTENT, event_stream
from agnt5_engine.ports import NotHere, UnknownRun
from agnt5_engine.records.routing import is_run_id

ENVELOPE_BYTES = 4096
"""What a command's body may hold besides its payload."""
LONGEST_WAIT = 86_400.0
"""Seconds that a request may wait for its run to end: a day."""

RunId = Annotated[str, Path(description="The run's ID.")]
Wait = Annotated[
    float | None,
    Query(ge=0, le=LONGEST_WAIT, allow_inf_nan=False, description="Seconds to wait for the run to end."),
]


class Signal(BaseModel):
    """A signal for a run; two with the same `id` count once."""

    model_config = ConfigDict(extra="forbid")

    payload: Any = None
    id: Annotated[str, Field(min_length=1, max_length=255)] | None = None


def routes(gateway: Gateway) -> APIRouter:
    api = router("runs")
    engine, owners = gateway.engine, gateway.owners

    async def awaited(request: Request, run_id: str, seconds: float | None) -> Run:
        known_form(run_id)
        if seconds:
            await owners.run(request, run_id)
            try:
                return await gateway.outlast(request, owners.finished(request, run_id), seconds)
            except TimeoutError:
                pass
        return await owners.run(request, run_id)

    async def standing(run_id: str) -> Status:
        """The status after a command that was applied here."""
        try:
            return _status(await engine.run(run_id))
        except (NotHere, UnknownRun):  # moved since; the command must not be passed on a second time
            return Status(run_id=run_id, status="running")

    @api.get("/v1/runs", responses=answers(RunList))
    async def list_runs(
        request: Request,
        status: RunStatus | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        cursor: str | None = None,
    ) -> Response:
        """Runs of every partition, newest first."""
        before: str | None = None
        if cursor is not None:
            created, run_id = decode_cursor(cursor)
            before = f"{created}/{run_id}"
        own = await engine.runs(status=status, workflow=workflow, session_id=session_id, limit=limit, before=before)
        others = await other_parts(gateway, request, RunList, request.query_params)
        runs = {run.run_id: run for other in others for run in other.items}
        runs.update((run.run_id, run) for run in own.items)
        ordered = sorted(runs.values(), key=lambda run: (milliseconds(run.created_at), run.run_id), reverse=True)
        more = len(ordered) > limit or own.next_cursor is not None or any(other.next_cursor for other in others)
        shown = ordered[:limit]
        following = encode_cursor(milliseconds(shown[-1].created_at), shown[-1].run_id) if more and shown else None
        return part(gateway, request, RunList(items=shown, next_cursor=following))

    @api.get("/v1/runs/{run_id}", responses=answers(Run, also=(404,)))
    async def get_run(request: Request, run_id: RunId, timeout: Wait = None) -> Response:
        """The run as it stands; with `timeout`, as soon as it has ended or is paused, at the latest then."""
        return shaped(await awaited(request, run_id, timeout))

    @api.get("/v1/status/{run_id}", responses=answers(Status, also=(404,)))
    async def get_status(request: Request, run_id: RunId) -> Response:
        """The run's status alone."""
        return shaped(_status(await awaited(request, run_id, None)))

    @api.get(
        "/v1/result/{run_id}",
        responses={**answers(Result, also=(404,)), 202: {"model": Result, "description": "Not yet"}},
    )
    async def get_result(request: Request, run_id: RunId, timeout: Wait = None) -> Response:
        """The run's result: 200 when it has ended, 202 while it has not."""
        run = await awaited(request, run_id, timeout)
        result = Result(run_id=run.run_id, status=run.status, output=run.output, error=run.error)
        return shaped(result, 200 if run.ended else 202)

    @api.get(
        "/v1/runs/{run_id}/events",
        responses=_events_responses(),
        openapi_extra={
            "parameters": [
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
                    "description": "With `follow`: only events after this seq.",
                }
            ]
        },
    )
    async def list_events(
        request: Request,
        run_id: RunId,
        follow: Annotated[
            bool, Query(description="Stream the history, then what happens, until the run ends.")
        ] = False,
        limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        cursor: str | None = None,
    ) -> Response:
        """The run's history; all of it unless `limit` is given."""
        known_form(run_id)
        after = last_event_id(request)
        if cursor is not None:
            seq, whose = decode_cursor(cursor)
            if whose != run_id:
                raise unusable_cursor()
            after = max(after, seq)
        if follow:
            await owners.run(request, run_id)
            return event_stream(owners.follow(request, run_id, after), gateway.closing)
        events: list[Event] = await engine.events(run_id, after)
        following: str | None = None
        if limit is not None and len(events) > limit:
            events = events[:limit]
            following = encode_cursor(events[-1].seq, run_id)
        return shaped(EventList(items=events, next_cursor=following))

    @api.get("/v1/runs/{run_id}/state", responses=_object_responses("The state", also=(404, 409)))
    async def get_state(run_id: RunId) -> Response:
        """The run's state object."""
        known_form(run_id)
        return Response(to_json(await engine.state(run_id)), media_type="application/json")

    @api.get("/v1/runs/{run_id}/history", responses=_object_responses("What replaying the run needs"))
    async def get_history(run_id: RunId) -> Response:
        """All that replaying the run needs (`agnt5 replay`)."""
        known_form(run_id)
        return Response(await engine.history(run_id), media_type="application/json")

    @api.post("/v1/runs/{run_id}/cancel", status_code=202, responses=answers(Status, status=202, also=(404, 409)))
    async def cancel_run(
        run_id: RunId, force: Annotated[bool, Query(description="End a run that does not react.")] = False
    ) -> Response:
        """Ask the run to stop: 202 once that is applied."""
        known_form(run_id)
        await engine.cancel(run_id, force=force)
        return shaped(await standing(run_id), 202)

    @api.post(
        "/v1/runs/{run_id}/retry",
        status_code=202,
        responses=answers(Status, status=202, also=(404, 409)),
        openapi_extra={"parameters": [header("Idempotency-Key", "Two retries of a run with the same key count once.")]},
    )
    async def retry_run(request: Request, run_id: RunId) -> Response:
        """Let a parked or failed run go on from what failed."""
        known_form(run_id)
        await engine.retry(run_id, named_header(request, "idempotency-key"))
        return shaped(await standing(run_id), 202)

    @api.post(
        "/v1/runs/{run_id}/signals/{name:path}",  # a name may have slashes
        status_code=202,
        responses=answers(Status, status=202, body=True, also=(404, 409)),
        openapi_extra=json_input(Signal.model_json_schema(), required=False),
    )
    async def signal_run(
        request: Request,
        run_id: RunId,
        name: Annotated[str, Path(description="The signal's name.", min_length=1, max_length=255)],
    ) -> Response:
        """Give the run a signal: 202 once it is applied."""
        known_form(run_id)
        signal = await shaped_body(request, Signal, gateway.settings.max_payload_bytes + ENVELOPE_BYTES)
        await engine.signal(run_id, name, signal.payload, signal.id)
        return shaped(await standing(run_id), 202)

    return api


def known_form(run_id: str) -> None:
    """Raises ProblemError 404 for what cannot be a run's ID."""
    if not is_run_id(run_id):
        raise unknown_run(run_id)


def last_event_id(request: Request) -> int:
    """The seq after which a stream goes on. Raises ProblemError 422."""
    text = request.headers.get("last-event-id")
    if text is None or text == "":
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise invalid([{"field": "header.last-event-id", "message": "must be the id of an event received earlier"}])
    return int(text)


def _status(run: Run) -> Status:
    return Status(run_id=run.run_id, status=run.status)


def _events_responses() -> dict[int | str, dict[str, Any]]:
    responses = answers(EventList, also=(404,))
    responses[200]["content"] = dict(CONTENT)
    return responses


def _object_responses(what: str, also: tuple[int, ...] = (404,)) -> dict[int | str, dict[str, Any]]:
    responses = answers(None, also=also)
    responses[200] = {
        "description": what,
        "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
    }
    return responses
