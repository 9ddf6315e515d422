"""A run's history as a document: for `agnt5 replay`, `TestEnvironment.replay`, and a bug report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from agnt5.errors import NonDeterminismError
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import (
    Cancelled,
    Completed,
    EntryKey,
    Errored,
    ErrorInfo,
    Event,
    Failed,
    Outcome,
    PastEvent,
    Resolved,
    RunInfo,
    Stopped,
    TimedOut,
)

if TYPE_CHECKING:
    from agnt5.workflow import Workflow

FORMAT = 1


@dataclass(slots=True)
class History:
    """All that going through a run again needs. `pending` is what a live run waits for; `outcome` how an ended one
    ended."""

    info: RunInfo
    input: bytes
    events: list[PastEvent]
    pending: dict[str, EntryKey] = field(default_factory=dict)
    outcome: Outcome | None = None

    def to_json(self) -> bytes:
        info = self.info._asdict()
        info["envelope"] = _text(self.info.envelope)
        return to_json(
            {
                "format": FORMAT,
                "run": info,
                "input": _text(self.input),
                "events": [_event_out(past) for past in self.events],
                "pending": [list(key) for key in self.pending.values()],
                "outcome": _outcome_out(self.outcome),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> History:
        """Raises ValueError for what is no history, or one of a later version."""
        try:
            told = from_json(data)
            if told["format"] > FORMAT:
                raise ValueError(f"this history has format {told['format']}; a newer agnt5 reads it")
            run = told["run"]
            keys = [EntryKey(*key) for key in told["pending"]]
            return cls(
                RunInfo(**{**run, "envelope": _bytes(run["envelope"])}),
                told["input"].encode(),
                [_event_in(past) for past in told["events"]],
                {key.path: key for key in keys},
                _outcome_in(told["outcome"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no run's history: {type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class Verified:
    """What replaying a history showed: `verified` of its `events` fit today's code. `stopped_at` names the in-place
    call that replay does not run and cannot see past; None when it went to the end."""

    events: int
    verified: int
    stopped_at: str | None = None

    @property
    def complete(self) -> bool:
        return self.stopped_at is None


class _NoSession:
    def session_state(self) -> dict[str, bytes]:
        return {}


def verify(workflow: Workflow[Any], history: History, max_payload: int | None = None) -> Verified:
    """Does today's code still go the way of this history? Runs nothing but the workflow's own code.

    Raises NonDeterminismError that names what differs."""
    limit = {} if max_payload is None else {"max_payload": max_payload}
    activation = Activation(workflow, history.info, history.input, _NoSession(), None, **limit)
    try:
        turn = activation.rebuild(history.events, history.pending, verify_only=True)
        if turn.calls:
            return Verified(len(history.events), activation.replayed, turn.calls[0].name)
        if not _same_end(turn.outcome, history.outcome):
            raise NonDeterminismError(
                f"run {history.info.run_id} of workflow {history.info.workflow!r} ends otherwise in today's code. "
                f"History: {_told(history.outcome)}. Code: {_told(turn.outcome)}"
            )
        return Verified(len(history.events), activation.replayed)
    finally:
        activation.evict()


def _same_end(code: Outcome | None, recorded: Outcome | None) -> bool:
    if isinstance(code, Errored) and isinstance(recorded, Errored):
        return (code.error.type, code.error.message) == (recorded.error.type, recorded.error.message)
    return code == recorded


def _told(outcome: Outcome | None) -> str:
    match outcome:
        case None:
            return "has not ended"
        case Completed(output=output):
            return f"returned {output[:200].decode(errors='replace')}"
        case Errored(error=error):
            return f"failed with {error.type}: {error.message[:200]}"
        case Stopped():
            return "was cancelled"


# ------------------------------------------------------------------ to JSON and back


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _event_out(past: PastEvent) -> dict[str, Any]:
    told: dict[str, Any] = {"time": past.time, "is": "start"}
    match past.event:
        case Resolved(path, value):
            told |= {"is": "resolved", "path": path, "value": value.decode()}
        case Failed(path, error):
            told |= {"is": "failed", "path": path, "error": error._asdict()}
        case TimedOut(path):
            told |= {"is": "timed_out", "path": path}
        case Cancelled(reason):
            told |= {"is": "cancelled", "reason": reason}
        case None:
            pass
    told |= {"kind": past.kind, "name": past.name, "digest": past.digest}
    told["reads"] = [[path, data.decode()] for path, data in past.reads]
    told["marks"] = [list(mark) for mark in past.marks]
    return told


def _event_in(told: Mapping[str, Any]) -> PastEvent:
    event: Event | None
    match told["is"]:
        case "start":
            event = None
        case "resolved":
            event = Resolved(told["path"], told["value"].encode())
        case "failed":
            event = Failed(told["path"], ErrorInfo(**told["error"]))
        case "timed_out":
            event = TimedOut(told["path"])
        case "cancelled":
            event = Cancelled(told["reason"])
        case other:
            raise ValueError(f"this history has an event {other!r}, which is unknown")
    return PastEvent(
        told["time"],
        event,
        told["kind"],
        told["name"],
        told["digest"],
        tuple((path, data.encode()) for path, data in told["reads"]),
        tuple((name, value) for name, value in told["marks"]),
    )


def _outcome_out(outcome: Outcome | None) -> dict[str, Any] | None:
    match outcome:
        case None:
            return None
        case Completed(output=output):
            return {"is": "completed", "output": output.decode()}
        case Errored(error=error):
            return {"is": "failed", "error": error._asdict()}
        case Stopped():
            return {"is": "stopped"}


def _outcome_in(told: Mapping[str, Any] | None) -> Outcome | None:
    if told is None:
        return None
    match told["is"]:
        case "completed":
            return Completed(told["output"].encode())
        case "failed":
            return Errored(ErrorInfo(**told["error"]))
        case "stopped":
            return Stopped()
        case other:
            raise ValueError(f"this history has an outcome {other!r}, which is unknown")
