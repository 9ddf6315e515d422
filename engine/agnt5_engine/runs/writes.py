"""Session writes: while one is in force, what else comes for its routing key waits."""

from __future__ import annotations

from pydantic_core import from_json, to_json

from agnt5.replay.protocol import WriteAsk
from agnt5.state import changed
from agnt5.wholes import SESSION, outgrown
from agnt5_engine.records.avro import decode, is_a
from agnt5_engine.records.journal import Replied, StateWritten
from agnt5_engine.runs.effects import Append, Effect
from agnt5_engine.runs.model import Run, Session
from agnt5_engine.runs.outbox import post_reply
from agnt5_engine.runs.state import PartitionState

_REFUSED = b'{"refused":'


def refusal(told: str) -> bytes:
    """The reply to a write that was not done and never will be."""
    return _REFUSED + to_json(told) + b"}"


def refused(reply: bytes) -> str | None:
    """Why it was not done, if the reply says so."""
    return from_json(reply)["refused"] if reply.startswith(_REFUSED) else None


def lock(state: PartitionState, run: Run, ask: WriteAsk) -> None:
    """Put the run's write in force, and ask for the record that makes it take effect."""
    session = state.session(run.key)
    if _was_written(session, run, ask):
        return
    whose, after = f"session {run.session}", changed(session.state, ask.changes)
    if (told := outgrown(whose, session.state, after, SESSION * state.code.max_payload)) is not None:
        post_reply(state, state.applied, run.run_id, ask.path, refusal(told))
        return
    session.lock = (run.run_id, ask.path)
    state.session_changed(session)
    state.effects.append(Append(run.run_id, state_written(state, session, run.run_id, ask)))


def release(state: PartitionState, run: Run) -> None:
    """The run's session write is given up: others of the session need not wait for it."""
    session = state.sessions.get(run.key)
    if session is not None and session.lock is not None and session.lock[0] == run.run_id:
        session.lock = None
        state.session_changed(session)
        # Asked for by what the same record began: then it need not be written in the first place.
        state.effects = [e for e in state.effects if not _writes(e, run)]


def _writes(effect: Effect, run: Run) -> bool:
    return isinstance(effect, Append) and effect.run_id == run.run_id and isinstance(effect.record, StateWritten)


def _was_written(session: Session, run: Run, ask: WriteAsk) -> bool:
    """The write took effect while the run was parked; that it did stands in the queue."""
    for held in session.queue:
        if is_a(held.value, Replied):
            record = decode(held.value)
            if (record.run_id, record.path) == (run.run_id, ask.path):
                return True
    return False


def is_locked(state: PartitionState, run: Run, path: str) -> bool:
    """The run's session write at `path` is in force: its StateWritten has not been applied."""
    return state.session(run.key).lock == (run.run_id, path)


def state_written(state: PartitionState, session: Session, run_id: str, ask: WriteAsk) -> StateWritten:
    return StateWritten(run_id, ask.path, ask.changes, session.base, state.claim)
