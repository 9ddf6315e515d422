"""State to rows and back: the exact inverse of each other, so that a rebuilt partition equals the live one."""

from __future__ import annotations

from agnt5.replay.protocol import (
    ChildAsk,
    EmitAsk,
    SignalAsk,
    SleepAsk,
    StepAsk,
    TellChildAsk,
    UserAsk,
    UserStateAsk,
    WriteAsk,
)
from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.routing import routing_key
from agnt5_engine.records.rows import HistoryRow, PendingRow, RunRow, SessionRow, UserRow
from agnt5_engine.runs.history import public_count
from agnt5_engine.runs.model import DeadlineAsk, EndAsk, EngineAsk, Pending, Run, Session, User

_ALLOW_CUSTOM, _SKIPPABLE, _DETACHED, _KEPT = 1, 2, 4, 8


def next_seq(history: list[HistoryRow]) -> int:
    """The number of public events that a history tells of."""
    return history[-1].seq + public_count(history[-1]) if history else 0


def run_row(run: Run, *, inline: bool) -> RunRow:
    """`inline`: the row carries the whole history."""
    return RunRow(
        run_id=run.run_id,
        workflow=run.workflow,
        status=run.status,
        input=run.input,
        session_id=run.session_id,
        user_id=run.user_id,
        trigger=run.trigger,
        metadata=run.metadata,
        envelope=run.envelope,
        parents=run.parents,
        attempt=run.attempt,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        output=run.output,
        error_type=run.error_type,
        message=run.message,
        traceback=run.traceback,
        step=run.step,
        pause_reason=run.pause_reason,
        pause_detail=run.pause_detail,
        cancelled=run.cancelled,
        commands=list(run.commands),
        signals=run.signals,
        held=run.held,
        history=run.history if inline else [],
    )


def run_of(row: RunRow) -> Run:
    run = Run(row.run_id, routing_key(row.run_id), row.workflow, row.input, row.created_at)
    run.session_id = row.session_id
    run.user_id = row.user_id
    run.trigger = row.trigger
    run.metadata = row.metadata
    run.envelope = row.envelope
    run.parents = row.parents
    run.status = row.status
    run.attempt = row.attempt
    run.started_at = row.started_at
    run.finished_at = row.finished_at
    run.output = row.output
    run.error_type = row.error_type
    run.message = row.message
    run.traceback = row.traceback
    run.step = row.step
    run.pause_reason = row.pause_reason
    run.pause_detail = row.pause_detail
    run.cancelled = row.cancelled
    run.commands = dict.fromkeys(row.commands)
    run.signals = row.signals
    run.held = row.held
    run.history = row.history
    run.seq = next_seq(run.history)
    run.stored = True
    return run


def session_row(session: Session) -> SessionRow:
    lock_run, lock_path = session.lock or (None, None)
    return SessionRow(session.key, session.base, lock_run, lock_path, session.state, session.queue)


def session_of(row: SessionRow) -> Session:
    session = Session(row.key)
    session.base = row.base
    if row.lock_run is not None and row.lock_path is not None:
        session.lock = (row.lock_run, row.lock_path)
    session.state = row.state
    session.queue = row.queue
    return session


def user_row(user: User) -> UserRow:
    return UserRow(user.user_id, user.version, user.state, user.replies)


def user_of(row: UserRow) -> User:
    user = User(row.user_id)
    user.version, user.state, user.replies = row.version, row.state, row.replies
    return user


def pending_row(run_id: str, path: str, p: Pending) -> PendingRow:
    row = PendingRow(
        "", p.asked_at, run_id, path, "", None, b"", None, None, _KEPT * p.kept, None, None, None,
        p.attempt, p.retry_at, p.restarts, p.isolated, p.dispatched, p.beat_at,
    )  # fmt: skip
    match p.ask:
        case StepAsk(name=name, function=function, input=data, options=options):
            return row._replace(ask="step", name=name, function=function, payload=data, options=options)
        case SleepAsk(name=name, due=due):
            return row._replace(ask="sleep", name=name, due=due)
        case UserAsk(_, question, input_type, options, allow_custom, skippable, due):
            flags = row.flags | _ALLOW_CUSTOM * allow_custom | _SKIPPABLE * skippable
            return row._replace(
                ask="user", name=input_type, payload=question.encode(), options=options, due=due, flags=flags
            )
        case SignalAsk(name=name, due=due):
            return row._replace(ask="signal", name=name, due=due)
        case ChildAsk(_, workflow, data, child, session_id, user_id, detached):
            ids = [x.encode() if x is not None else None for x in (session_id, user_id)]
            return row._replace(
                ask="child", name=workflow, payload=data, target=child, key=ids[0], extra=ids[1],
                flags=row.flags | _DETACHED * detached,
            )  # fmt: skip
        case WriteAsk(changes=changes):
            return row._replace(ask="write", payload=changes)
        case UserStateAsk(op=op, changes=changes, version=version):
            return row._replace(ask="user_state", name=op, payload=changes, due=version)
        case EmitAsk(_, topic, value, key, _):
            return row._replace(ask="emit", target=topic, payload=value, key=key)
        case TellChildAsk(_, child, command, name, payload):
            return row._replace(ask="tell", name=command, target=child, function=name, payload=payload)
        case EndAsk(record=record):
            return row._replace(ask="end", payload=encode(record))
        case DeadlineAsk(due=due):
            return row._replace(ask="timeout", due=due)


def pending_of(row: PendingRow) -> Pending:
    p = Pending(_ask_of(row), row.asked_at)
    p.attempt, p.retry_at, p.restarts, p.isolated = row.attempt, row.retry_at, row.restarts, row.isolated
    p.dispatched, p.beat_at = row.dispatched, row.beat_at
    p.kept = bool(row.flags & _KEPT)
    p.saved = p.stored = True
    return p


def _ask_of(row: PendingRow) -> EngineAsk:
    path, due = row.path, row.due
    match row.ask:
        case "step":
            return StepAsk(path, row.name, row.function, row.payload, row.options)
        case "sleep":
            return SleepAsk(path, row.name, due or 0)
        case "user":
            return UserAsk(
                path, row.payload.decode(), row.name, row.options or b"[]",
                bool(row.flags & _ALLOW_CUSTOM), bool(row.flags & _SKIPPABLE), due,
            )  # fmt: skip
        case "signal":
            return SignalAsk(path, row.name, due)
        case "child":
            session_id, user_id = (x.decode() if x is not None else None for x in (row.key, row.extra))
            detached = bool(row.flags & _DETACHED)
            return ChildAsk(path, row.name, row.payload, row.target or "", session_id, user_id, detached)
        case "write":
            return WriteAsk(path, row.payload)
        case "user_state":
            return UserStateAsk(path, row.name, row.payload, due)
        case "emit":
            # Its headers are in the outbox row, which is what is sent.
            return EmitAsk(path, row.target or "", row.payload, row.key, ())
        case "tell":
            return TellChildAsk(path, row.target or "", row.name, row.function or "", row.payload)
        case "end":
            return EndAsk(path, decode(row.payload))
        case "timeout":
            return DeadlineAsk(path, due or 0)
        case other:
            raise ValueError(f"pending row of unknown kind {other!r}")
