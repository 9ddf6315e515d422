"""The history of a run: what replay needs of it, and what the public sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json

from agnt5.replay.entries import TIMER
from agnt5.replay.protocol import Cancelled, ErrorInfo, Event, Failed, PastEvent, Resolved, TimedOut
from agnt5_engine.records.rows import HistoryRow

# HistoryRow.event
START = "start"
RESOLVED = "resolved"
FAILED = "failed"
TIMED_OUT = "timed_out"
CANCELLED = "cancelled"
ATTEMPT_FAILED = "attempt_failed"  # a step will be tried again
FINISHED = "finished"  # `name` is the status
PAUSED = "paused"
RESUMED = "resumed"
RETRIED = "retried"  # replay starts here; what follows as KEPT is what the new attempt takes over
KEPT = "kept"

_REPLAYED = frozenset({START, RETRIED, RESOLVED, KEPT, FAILED, TIMED_OUT, CANCELLED})


class PublicEvent(NamedTuple):
    """One event as histories and streams show it."""

    seq: int
    time: int
    type: str
    entry: str | None
    name: str | None
    attempt: int | None
    data: dict[str, Any]


def replayed(history: Sequence[HistoryRow]) -> list[PastEvent]:
    """The activating events since the run (last) began."""
    first = max(i for i, row in enumerate(history) if row.event in (START, RETRIED))
    return [
        PastEvent(
            row.time, _event_of(row), row.kind, row.name, row.digest,
            tuple((r.path, r.value) for r in row.reads), tuple((m.name, m.value) for m in row.marks),
        )
        for row in history[first:]
        if row.event in _REPLAYED
    ]  # fmt: skip


def earlier_results(history: Sequence[HistoryRow]) -> dict[str, HistoryRow]:
    """By path, what the attempts of the run before the present one have of its entries.

    Timers of time limits are left out: they start afresh."""
    found: dict[str, HistoryRow] = {}
    present: dict[str, HistoryRow] = {}
    for row in history:
        if row.event == RETRIED:
            found |= present
            present = {}
        elif row.event in (RESOLVED, KEPT) and not (row.kind == "sleep" and row.name == TIMER):
            present[row.path] = row
    return found


def _event_of(row: HistoryRow) -> Event | None:
    match row.event:
        case "resolved" | "kept":
            return Resolved(row.path, row.value or b"null")
        case "failed":
            return Failed(row.path, error_of(row))
        case "timed_out":
            return TimedOut(row.path)
        case "cancelled":
            return Cancelled(row.name)
        case _:
            return None


def error_of(row: HistoryRow) -> ErrorInfo:
    return ErrorInfo(row.error_type or "Exception", row.message or "", row.traceback or "", row.step, row.attempt + 1)


_OWN = frozenset({START, ATTEMPT_FAILED, FINISHED, PAUSED, RESUMED, RETRIED})
_ENDS = frozenset({RESOLVED, FAILED, TIMED_OUT})
_PUBLIC_KINDS = frozenset({"step", "user"})


def public_count(row: HistoryRow) -> int:
    """How many public events `public_events` makes of the row."""
    count = 1 if row.event in _OWN or (row.event in _ENDS and row.kind in _PUBLIC_KINDS) else 0
    for ask in row.asks:
        if ask.kind in _PUBLIC_KINDS:
            count += 1
    return count


def public_events(row: HistoryRow) -> list[PublicEvent]:
    """The events of one row, numbered from `row.seq + 1`."""
    found: list[PublicEvent] = []

    def add(type: str, entry: str | None, name: str | None, attempt: int | None, data: dict[str, Any]) -> None:
        found.append(PublicEvent(row.seq + 1 + len(found), row.time, type, entry, name, attempt, data))

    def error() -> dict[str, Any]:
        return {
            "type": (row.error_type or "").rpartition(".")[2],
            "message": row.message,
            "traceback": row.traceback,
            "step": row.step,
        }

    match row.event, row.kind:
        case "start", _:
            add("run.started", None, None, None, {})
        case (("resumed" | "retried"), _):
            add("run.resumed", None, None, row.attempt, {})
        case "paused", _:
            add("run.paused", None, None, None, {"reason": row.name, "detail": row.message})
        case "finished", _:
            data: dict[str, Any] = {}
            if row.error_type is not None:
                data["error"] = error()
            if row.value is not None:
                data["result"] = from_json(row.value)
            add(f"run.{row.name}", None, None, None, data)
        case "resolved", "step":
            add("workflow.step.completed", row.path, row.name, row.attempt, {"result": from_json(row.value or b"null")})
        case (("failed" | "attempt_failed"), "step"):
            data = {"error": error()}
            if row.event == ATTEMPT_FAILED:
                data["retry_at"] = int(row.value or b"0")
            add("workflow.step.failed", row.path, row.name, row.attempt, data)
        case "resolved", "user":
            data = {"response": from_json(row.value or b"null"), "answered_by": row.by}
            add("approval.resolved", row.path, row.name, None, data)
        case "timed_out", "user":
            add("approval.resolved", row.path, row.name, None, {"timed_out": True})
        case _:
            pass
    for ask in row.asks:
        if ask.kind == "step":
            add("workflow.step.started", ask.path, ask.name, 0, {})
        elif ask.kind == "user":
            add("approval.requested", ask.path, ask.name, None, from_json(ask.data or b"{}"))
    return found
