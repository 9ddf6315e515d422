"""Reading a request's body: bounded, in time, and as strict JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from agnt5_engine.gateway.problems import ProblemError, field_faults, invalid

RAW_BODY = "agnt5.body"
"""Where the raw bytes stay in the ASGI scope, for the owner that the request may have to be passed on to."""

BODY_SECONDS = 30.0
_DRAINED = 8 * 2**20  # how much of an over-long body is read away so that the client gets to read the answer

Shaped = TypeVar("Shaped", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body as sent. Raises ProblemError: 413 over `limit` bytes, 408 when it takes too long."""
    kept = request.scope.get(RAW_BODY)
    if kept is not None:
        return bytes(kept)
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared.lstrip("0") or "0") > limit  # Python reads 4,300 digits at most
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    too_large = True
                if not too_large:
                    chunks.append(chunk)
                elif size > limit + _DRAINED:
                    break
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_SECONDS:.0f} s."
        raise ProblemError(408, "too-slow", detail, headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise ProblemError(400, "incomplete", "The connection ended before the body did.") from None
    if too_large:
        raise ProblemError(
            413, "too-large", f"The body is larger than {limit} bytes (AGNT5_MAX_PAYLOAD_BYTES).", limit=limit
        )
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    request.scope[RAW_BODY] = body
    return body


def require_json(request: Request) -> None:
    """Refuse a content type other than JSON (none at all is taken as JSON). Raises ProblemError 415."""
    declared = request.headers.get("content-type")
    if declared is None:
        return
    essence, _, parameters = declared.partition(";")
    essence = essence.strip().lower()
    if essence != "application/json" and not (essence.startswith("application/") and essence.endswith("+json")):
        raise ProblemError(
            415,
            "wrong-content-type",
            f"The body must be JSON, not {essence[:80]!r}: send 'Content-Type: application/json'.",
            headers={"accept": "application/json"},
        )
    charset = parameters.lower().partition("charset=")[2].strip(' "')
    if charset and charset not in ("utf-8", "utf8", "us-ascii"):
        raise ProblemError(415, "wrong-content-type", f"The body must be UTF-8, not {charset[:40]!r}.")


def parse_json(body: bytes) -> Any:
    """JSON, strictly: UTF-8, finite numbers, no key twice in an object, at most 200 levels. Raises ProblemError 422."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid([{"field": "body", "message": f"not JSON: {error}"}]) from None
    # pydantic-core keeps the last of two equal keys, and reads 1e999 as infinity.
    if body.count(b'"') > 2 or b"e" in body or b"E" in body or len(body) > 300:
        json.loads(body, object_pairs_hook=_no_key_twice, parse_float=_finite)
    return value


async def json_body(request: Request, limit: int) -> Any:
    """The body as strict JSON; an empty one is `{}`."""
    require_json(request)
    body = await read_body(request, limit)
    return parse_json(body) if body else {}


async def shaped_body(request: Request, shape: type[Shaped], limit: int) -> Shaped:
    """The body as `shape`, which refuses what it does not know. Raises ProblemError 422 naming each field."""
    value = await json_body(request, limit)
    try:
        return shape.model_validate(value, strict=True)
    except ValidationError as error:
        raise invalid(field_faults(error.errors(include_url=False, include_input=False))) from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise invalid([{"field": key[:80], "message": "appears twice in one object"}])
            seen.add(key)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise invalid([{"field": "body", "message": f"{text[:40]} is too large for a number"}])
    return number
