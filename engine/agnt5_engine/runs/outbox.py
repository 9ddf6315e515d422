"""Effects outside the partition: posted when asked for, kept until `Delivered` says that they are durable.

Each has a stable ID, so that whoever receives it twice can tell. `JOURNAL` and `OUTCOMES` stand for the engine's own
topics; any other topic is a user's.
"""

from __future__ import annotations

from pydantic_core import to_json

from agnt5.replay.protocol import OWN, ChildAsk, EmitAsk, ErrorInfo, TellChildAsk, UserStateAsk
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import (
    CancelRequested,
    ChildFinished,
    JournalRecord,
    Replied,
    RunOutcome,
    RunRequested,
    SignalSent,
    UserStateAsked,
)
from agnt5_engine.records.routing import routing_key, user_key
from agnt5_engine.records.rows import Header, OutboxRow
from agnt5_engine.runs.effects import Send
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.state import PartitionState

JOURNAL = ":journal"
OUTCOMES = ":outcomes"

#: Header of events that runs emit or clients publish; triggers of this engine start one run per value.
EVENT_ID = "agnt5-event-id"


def _post(
    state: PartitionState, id: str, topic: str, key: str | bytes | None, value: bytes,
    headers: list[Header] | None = None, run_id: str | None = None, path: str | None = None,
) -> None:  # fmt: skip
    data = key.encode() if isinstance(key, str) else key
    state.post(OutboxRow(id, topic, data, value, headers or [], run_id, path))
    state.effects.append(Send(id))


def _tell(state: PartitionState, id: str, run_id: str, record: JournalRecord) -> None:
    _post(state, id, JOURNAL, routing_key(run_id), encode(record))


def _id(kind: str, run: Run, path: str) -> str:
    """Another attempt of the run may post something else for the same entry, while the first is on its way."""
    return f"{kind}:{run.run_id}/{path}" + (f"#{run.attempt}" if run.attempt else "")


def by_later_attempt(command_id: str) -> bool:
    """Whether a run's first attempt is not the one that asks; for commands that runs send."""
    return "#" in command_id


def _attempt_of(command_id: str) -> int:
    return int(command_id.rpartition("#")[2])


def post_child(state: PartitionState, run: Run, ask: ChildAsk) -> None:
    """Ask for the child run."""
    id = _id("child", run, ask.path)
    record = RunRequested(
        run_id=ask.run_id,
        command_id=id.removeprefix("child:"),
        workflow=ask.workflow,
        input=ask.input,
        session_id=None if ask.session_id == OWN else ask.session_id or run.session,
        user_id=ask.user_id or run.user,
        trigger=to_json({"kind": "child", "parent_run_id": run.run_id, "entry": ask.path}),
        parent_run_id=run.run_id,
        parent_path=ask.path,
        metadata=run.metadata,
        envelope=None,
    )
    _tell(state, id, ask.run_id, record)


def withdraw_child(state: PartitionState, run: Run, ask: ChildAsk) -> None:
    """Nobody waits for the child any more, or its parent was cancelled."""
    if not ask.detached:
        record = CancelRequested(ask.run_id, f"{run.run_id}/{ask.path}:cancel", False)
        _tell(state, _id("cancel", run, ask.path), ask.run_id, record)


def post_tell(state: PartitionState, run: Run, ask: TellChildAsk) -> None:
    id = _id("tell", run, ask.path)
    command_id = id.removeprefix("tell:")
    record: CancelRequested | SignalSent
    if ask.command == "cancel":
        record = CancelRequested(ask.child_run_id, command_id, False)
    else:
        record = SignalSent(ask.child_run_id, command_id, ask.name, ask.payload)
    _tell(state, id, ask.child_run_id, record)


def post_user_state(state: PartitionState, run: Run, ask: UserStateAsk) -> None:
    record = UserStateAsked(run.user, run.run_id, ask.path, ask.op, ask.changes, ask.version)
    _post(state, _id("user", run, ask.path), JOURNAL, user_key(run.user), encode(record))


def post_reply(state: PartitionState, offset: int, run_id: str, path: str, value: bytes) -> None:
    """`offset`: of the record that is replied to."""
    _tell(state, f"reply:{run_id}/{path}@{offset}", run_id, Replied(run_id, path, value))


def post_emit(state: PartitionState, run: Run, ask: EmitAsk) -> None:
    headers = [Header(n, v) for n, v in ask.headers]
    if not any(n == EVENT_ID for n, _ in ask.headers):
        headers.append(Header(EVENT_ID, f"{run.run_id}/{ask.path}".encode()))
    _post(state, _id("emit", run, ask.path), ask.topic, ask.key, ask.value, headers, run.run_id, ask.path)


def post_child_finished(state: PartitionState, offset: int, child: Run, parent_run_id: str, path: str) -> None:
    """`offset`: of the record that makes us tell the parent; it may have to be told more than once."""
    attempt = max((_attempt_of(c) for c in child.commands if c.startswith(f"{parent_run_id}/{path}#")), default=0)
    record = ChildFinished(
        parent_run_id,
        path,
        attempt,
        child.run_id,
        child.status,
        child.output,
        child.error_type,
        child.message,
        child.traceback,
    )
    _tell_parent(state, offset, record)


def post_child_refused(state: PartitionState, offset: int, asked: RunRequested, error: ErrorInfo) -> None:
    """Tell a parent that its child cannot be started. `offset`: of the record that asked for it."""
    parent, path = asked.parent_run_id or "", asked.parent_path or ""
    attempt = _attempt_of(asked.command_id) if by_later_attempt(asked.command_id) else 0
    record = ChildFinished(
        parent, path, attempt, asked.run_id, "failed", None, error.type, error.message, error.traceback
    )
    _tell_parent(state, offset, record)


def _tell_parent(state: PartitionState, offset: int, record: ChildFinished) -> None:
    id = f"done:{record.child_run_id}/{record.run_id}/{record.path}@{offset}"
    _tell(state, id, record.run_id, record)


def post_outcome(state: PartitionState, run: Run) -> None:
    record = RunOutcome(
        run.run_id, run.workflow, run.status, run.input, run.output, run.error_type, run.message, run.session, run.user,
        run.created_at, run.finished_at or 0,
    )  # fmt: skip
    _post(
        state, f"outcome:{run.run_id}/{run.attempt}", OUTCOMES, run.run_id, encode(record),
        [Header(EVENT_ID, f"{run.run_id}/{run.attempt}".encode())],
    )  # fmt: skip
