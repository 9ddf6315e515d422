"""Runs as the outside sees them: state or rows to the shapes of the API."""

from __future__ import annotations

from pydantic_core import from_json, to_jsonable_python

from agnt5.client.models import Approval, ErrorDetail, Event, Option, Pause, Run, RunStatus, Trigger, Waiting, at
from agnt5.errors import short_type
from agnt5.replay.protocol import ChildAsk, EmitAsk, SignalAsk, SleepAsk, StepAsk, UserAsk
from agnt5_engine.runs import model
from agnt5_engine.runs.history import PublicEvent


def status_of(run: model.Run) -> RunStatus:
    """The public status: what the run is doing, as far as people care."""
    if run.status == "running":
        if any(isinstance(p.ask, UserAsk) for p in run.pending.values()):
            return "awaiting_user_input"
        if not run.begun:
            return "pending"
    return run.status  # type: ignore[return-value]


def run_view(run: model.Run) -> Run:
    error = None
    if run.error_type is not None:
        error = ErrorDetail(
            type=short_type(run.error_type), message=run.message or "", traceback=run.traceback or "", step=run.step
        )
    pause = None
    if run.pause_reason is not None:
        pause = Pause(reason=run.pause_reason, detail=run.pause_detail or "")
    return Run(
        run_id=run.run_id,
        workflow=run.workflow,
        status=status_of(run),
        input=from_json(run.input),
        output=from_json(run.output) if run.output is not None else None,
        error=error,
        pause=pause,
        session_id=run.session,
        user_id=run.user,
        created_at=at(run.created_at),
        started_at=at(run.started_at) if run.started_at is not None else None,
        finished_at=at(run.finished_at) if run.finished_at is not None else None,
        trigger=Trigger.model_validate(from_json(run.trigger)),
        waiting_on=[] if run.ended else waiting_on(run),
        parent_run_id=run.parents[0].run_id if run.parents else None,
    )


def waiting_on(run: model.Run) -> list[Waiting]:
    found = []
    for path, p in run.pending.items():
        match p.ask:
            case StepAsk(name=name):
                kind, until = "step", p.retry_at
            case SleepAsk(name=name, due=until):
                kind = "sleep"
            case UserAsk(question=name, due=until):
                kind = "user"
            case SignalAsk(name=name, due=until):
                kind = "signal"
            case ChildAsk(workflow=name):
                kind, until = "child", None
            case EmitAsk(topic=name):
                kind, until = "emit", None
            case _:
                continue
        found.append(Waiting(kind=kind, entry=path, name=name, until=at(until) if until is not None else None))
    return found


def event_view(run_id: str, e: PublicEvent) -> Event:
    data = e.data
    if "retry_at" in data:
        data = data | {"retry_at": to_jsonable_python(at(data["retry_at"]))}
    return Event(
        seq=e.seq,
        time=at(e.time),
        type=e.type,  # type: ignore[arg-type]
        run_id=run_id,
        entry=e.entry,
        name=e.name,
        attempt=e.attempt,
        data=data,
    )


def approval_view(run: model.Run, path: str, p: model.Pending) -> Approval:
    ask = p.ask
    assert isinstance(ask, UserAsk)
    return Approval(
        run_id=run.run_id,
        workflow=run.workflow,
        entry=path,
        question=ask.question,
        input_type=ask.input_type,  # type: ignore[arg-type]
        options=[Option.model_validate(o) for o in from_json(ask.options)],
        allow_custom=ask.allow_custom,
        skippable=ask.skippable,
        asked_at=at(p.asked_at),
        expires_at=at(ask.due) if ask.due is not None else None,
    )
