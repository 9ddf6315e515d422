"""Problem documents (RFC 9457): the one shape of every answer that is not what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from agnt5_engine.ports import NotHere, Refused, UnknownRun
from agnt5_engine.transport.base import BadTopicError, RetriableError, TooLargeError, TransportError

MEDIA_TYPE = "application/problem+json"
RETRY = {"retry-after": "1"}

_REFUSED_MEMBER = {"already_answered": "answer", "several_pending": "entries", "invalid_answer": "options"}


class ProblemError(Exception):
    """An answer other than the one asked for. `word` names the kind for programs, `detail` says it to people."""

    def __init__(
        self, status: int, word: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.word = word
        self.detail = detail
        self.headers = headers
        self.members = members


class RelayedError(Exception):
    """Another processor's answer, to be passed on as it is."""

    def __init__(self, status: int, body: bytes, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"relayed {status}")
        self.status = status
        self.body = body
        self.media_type = media_type
        self.headers = headers


def problem(
    status: int, word: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """A problem document as a response. `members` are the extra fields of this kind of problem."""
    document = {
        "type": f"urn:agnt5:problem:{word}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **members,
    }
    body = to_json(document, inf_nan_mode="null", serialize_unknown=True)
    return Response(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def invalid(faults: Sequence[Mapping[str, str]], detail: str | None = None) -> ProblemError:
    """422, naming each field: `faults` are `{"field", "message"}`."""
    text = detail or "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    return ProblemError(422, "invalid", text, errors=list(faults))


def unknown_run(run_id: str) -> ProblemError:
    return ProblemError(404, "unknown-run", f"There is no run {run_id[:200]!r}, or it is past its retention time.")


def unavailable(detail: str) -> ProblemError:
    return ProblemError(503, "unavailable", detail, headers=RETRY)


def install(app: FastAPI) -> None:
    """Make every error of this application a problem document. (`NotHere` is `owners.py`'s to handle.)"""

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return problem(error.status, error.word, error.detail, headers=error.headers, **error.members)

    @app.exception_handler(RelayedError)
    async def _relayed(request: Request, error: RelayedError) -> Response:
        return Response(error.body, error.status, headers=dict(error.headers), media_type=error.media_type)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return problem(404, "no-such-path", f"There is nothing at {request.url.path!r}; /docs lists what there is.")
        if error.status_code == 405:
            detail = f"{request.method} is not for {request.url.path!r}; see the Allow header."
            return problem(405, "method-not-allowed", detail, headers=error.headers)
        return problem(error.status_code, "refused", str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        faults = field_faults(error.errors())
        detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
        return problem(422, "invalid", detail, errors=faults)

    @app.exception_handler(UnknownRun)
    async def _unknown(request: Request, error: UnknownRun) -> Response:
        return await _problem(request, unknown_run(request.path_params.get("run_id") or str(error)))

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> Response:
        member = _REFUSED_MEMBER.get(error.reason)
        members = {member: error.detail} if member else {}
        status = 422 if error.reason == "invalid_answer" else 409
        return problem(status, error.reason.replace("_", "-"), str(error), **members)

    @app.exception_handler(TransportError)
    async def _transport(request: Request, error: TransportError) -> Response:
        match error:
            case BadTopicError():
                return problem(422, "bad-topic", str(error))
            case TooLargeError():
                return problem(413, "too-large", str(error))
            case RetriableError():
                detail = "The log is not reachable just now; whether this was written is not known. Ask again."
                return problem(503, "log-unavailable", detail, headers=RETRY)
            case _:
                return problem(503, "unavailable", "This processor is giving up its place; ask again.", headers=RETRY)


def no_owner(error: NotHere) -> Response:
    """503: nobody owns the partition just now, or whoever does is not where a request may still be sent."""
    doubt = ", and whether it did this is not known" if error.unsure else ""
    return problem(
        503,
        "no-owner",
        f"Partition {error.partition} is changing hands{doubt}; ask again in a moment.",
        headers=RETRY,
        partition=error.partition,
    )


def field_faults(errors: Iterable[Any]) -> list[dict[str, str]]:
    """pydantic's errors as `{"field", "message"}`, without the values that were sent."""
    return [
        {"field": ".".join(str(part) for part in error["loc"]) or "body", "message": _without_value(error["msg"])}
        for error in errors
    ]


def _without_value(message: str) -> str:
    return re.sub(r", input_value=.*$", "", message, flags=re.DOTALL)
