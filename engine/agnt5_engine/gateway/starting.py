"""Starting a run from a request: bind, decide who owns it, start it there, and know its ID whatever happens next."""

from __future__ import annotations

import difflib
from typing import Any

from starlette.requests import Request

from agnt5.errors import InputError
from agnt5_engine.gateway.body import RAW_BODY, read_body, require_json
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.hop import Hop
from agnt5_engine.gateway.problems import ProblemError, invalid
from agnt5_engine.ports import NotHere, Started, StartRequest
from agnt5_engine.triggers.events import ENVELOPE_ROOM

LONGEST_NAME = 255  # of an idempotency key, a session or a user


async def start_from_body(gateway: Gateway, request: Request, workflow: str) -> Started:
    """Start `workflow` with the request's body as input, here or at its owner. Raises ProblemError, Refused."""
    require_workflow(gateway, workflow)
    require_json(request)
    body = await read_body(request, gateway.settings.max_payload_bytes) or b"{}"
    key = named_header(request, "idempotency-key")
    trigger: dict[str, Any] = {"kind": "http"}
    if key is not None:
        trigger["idempotency_key"] = key
    start = StartRequest(
        workflow=workflow,
        input=bind(gateway, workflow, body),
        trigger=trigger,
        session_id=named_header(request, "x-session-id"),
        user_id=named_header(request, "x-user-id"),
        dedupe=None if key is None else f"http:{key}",
        strict=key is not None,
    )
    return await start_somewhere(gateway, request, start, f"/v1/workflows/{workflow}/submit")


async def start_somewhere(gateway: Gateway, request: Request, start: StartRequest, path: str) -> Started:
    """Start it here, or have its owner do so from the same body, sent to `path` with the run's ID pinned."""
    hop = gateway.owners.hop(request)
    if hop is not None and hop.run_id is not None and start.dedupe is None:
        start.run_id = hop.run_id
    elif start.dedupe is None:
        # Drawn here once, so that every later attempt means the same run.
        start.run_id = gateway.engine.run_id_for(start)
    try:
        return await gateway.engine.start(start)
    except NotHere as error:
        if error.url is None or hop is not None:
            raise
        pinned = Hop(start.run_id, start.workflow)
        return await gateway.owners.start(request, error.url, path, request.scope.get(RAW_BODY, b""), pinned)


def require_workflow(gateway: Gateway, workflow: str) -> None:
    """Raises ProblemError 404 with near names when there is no such workflow."""
    names = gateway.catalog.names()
    if workflow in names:
        return
    near = difflib.get_close_matches(workflow, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/workflows lists those there are."
    raise ProblemError(404, "unknown-workflow", f"There is no workflow {workflow[:200]!r}.{hint}", near=near)


def bind(
    gateway: Gateway, workflow: str, payload: bytes, *, strict: bool = True, envelope: bytes | None = None
) -> bytes:
    """The input as the engine takes it. Raises ProblemError: 422 naming each field, 413 when it is too large."""
    try:
        data = gateway.catalog.bind(workflow, payload, strict=strict, envelope=envelope)
    except InputError as error:
        raise invalid(
            [{"field": name or "body", "message": message} for name, message in error.fields.items()],
            str(error),
        ) from None
    limit = gateway.settings.max_payload_bytes
    if len(data) > limit or (envelope is not None and len(data) + len(envelope) > limit + ENVELOPE_ROOM):
        raise ProblemError(413, "too-large", f"The input is larger than {limit} bytes (AGNT5_MAX_PAYLOAD_BYTES).")
    return data


def named_header(request: Request, header: str) -> str | None:
    """A header that names something. Raises ProblemError 422 when it cannot be such a name."""
    value = request.headers.get(header)
    if value is None:
        return None
    try:
        text = value.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise invalid([{"field": f"header.{header}", "message": "is not UTF-8"}]) from None
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        message = f"must be 1 to {LONGEST_NAME} printable characters"
        raise invalid([{"field": f"header.{header}", "message": message}])
    return text
