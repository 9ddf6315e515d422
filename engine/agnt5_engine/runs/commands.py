"""Applying what people, clients and other runs ask of a run. Each ends in a verdict, decided here and nowhere else."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

from pydantic_core import from_json, to_json

from agnt5.replay.children import id_taken
from agnt5.replay.protocol import Cancelled, ErrorInfo, Resolved, UserAsk
from agnt5.replay.questions import InvalidAnswer, check_answer
from agnt5.state import changed
from agnt5.wholes import outgrown, too_many_signals
from agnt5_engine.records.avro import decode, is_a
from agnt5_engine.records.journal import (
    CancelRequested,
    RetryRequested,
    RunRequested,
    SignalSent,
    UserResponded,
    UserStateAsked,
)
from agnt5_engine.records.routing import routing_key
from agnt5_engine.records.rows import EarlyCancelRow, Held, Parent, Signal
from agnt5_engine.runs import history as h
from agnt5_engine.runs.activate import advance
from agnt5_engine.runs.finish import arm_deadline, finish, go_on_again, unpark
from agnt5_engine.runs.model import DEADLINE, Cause, Run
from agnt5_engine.runs.outbox import by_later_attempt, post_child_finished, post_child_refused, post_reply
from agnt5_engine.runs.schedules import admit
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.runs.writes import refusal

#: IDs of commands that a run remembers, before those of the oldest signals go: they stand in its row, which is written
#: whole whenever it changes.
_REMEMBERED = 4_000
_REPLIES = 1024  # user-state replies remembered per user: far more than can be in flight


def run_requested(state: PartitionState, held: Held, r: RunRequested) -> None:
    run = state.run(r.run_id)
    if run is not None and (run.begun or run.ended or run.status == "paused"):
        _requested_again(state, held, run, r)
        return
    if run is None:
        if not admit(state, held, r):
            return
        run = Run(r.run_id, routing_key(r.run_id), r.workflow, r.input, held.time)
        run.session_id, run.user_id = r.session_id, r.user_id
        run.trigger, run.metadata, run.envelope = r.trigger, r.metadata, r.envelope
        if r.parent_run_id is not None and r.parent_path is not None:
            run.parents = [Parent(r.parent_run_id, r.parent_path)]
            if by_later_attempt(r.command_id):
                run.commands[r.command_id] = None
        run.replaces = state.runs.get(r.run_id)
        state.runs[r.run_id] = run
        state.changed(run)
        state.verdict(r.command_id, r.run_id)
    if DEADLINE not in run.pending:  # not yet, or the code that knows of it was not here when the run was parked
        arm_deadline(state, run, held.time)
    if state.early_cancel(r.run_id) is not None:
        state.early_cancels[r.run_id] = None
        state.dirty_cancels[r.run_id] = None
        finish(state, run, held, "cancelled")
        return
    advance(state, run, Cause(held, None))


def _requested_again(state: PartitionState, held: Held, run: Run, r: RunRequested) -> None:
    by_later = r.parent_run_id is not None and by_later_attempt(r.command_id) and r.command_id not in run.commands
    if by_later and _goes_on_again(run):
        _join(state, run, Parent(r.parent_run_id or "", r.parent_path or ""))  # another's, where the child has an ID
        go_on_again(state, run, held, run.attempt + 1 if run.ended else run.attempt, r.command_id)
        return
    same = run.workflow == r.workflow and _same_input(run.input, r.input)
    state.verdict(r.command_id, r.run_id, "existing", f"run {r.run_id} exists", {"same": same, "status": run.status})
    if r.parent_run_id is None or r.parent_path is None:
        return
    if run.workflow != r.workflow:
        post_child_refused(state, held.offset, r, id_taken(run.run_id, run.workflow, r.workflow))
        return
    if by_later:
        run.commands[r.command_id] = None
        state.changed(run)
    parent = Parent(r.parent_run_id, r.parent_path)
    if run.ended:
        post_child_finished(state, held.offset, run, *parent)
    else:
        _join(state, run, parent)


def _join(state: PartitionState, run: Run, parent: Parent) -> None:
    """The parent is told of the run's end too."""
    if parent not in run.parents:
        run.parents = [*run.parents, parent]
        state.changed(run)


def _same_input(one: bytes, other: bytes) -> bool:
    """Whether two inputs are one JSON object: the order of its fields says nothing, and senders do not keep it."""
    return one == other or json.dumps(from_json(one), sort_keys=True) == json.dumps(from_json(other), sort_keys=True)


def _goes_on_again(run: Run) -> bool:
    """A child that did not complete, when the next attempt of its parent asks for it: else that attempt would fail as
    the one before did. Not ended: it has been told so, and waited behind its own in-place call, or was parked."""
    if run.ended:
        return run.status != "completed"
    return run.status != "paused" and run.begun and begun_attempt(run) < run.attempt


def cancel_requested(state: PartitionState, held: Held, r: CancelRequested) -> None:
    run = state.run(r.run_id)
    if run is None:
        state.cancel_early(EarlyCancelRow(r.run_id, held.time))
        state.verdict(r.command_id, r.run_id, "unknown", f"no run {r.run_id}")
    elif r.command_id in run.commands:
        state.verdict(r.command_id, r.run_id)
    elif run.ended:
        state.verdict(r.command_id, r.run_id, "ended", f"run {r.run_id} has ended: {run.status}", run.status)
    elif r.force or run.status == "paused":
        run.commands[r.command_id] = None
        finish(state, run, held, "cancelled")
        state.verdict(r.command_id, r.run_id)
    elif run.ending:
        state.verdict(r.command_id, r.run_id, "ended", f"run {r.run_id} is ending", run.status)
    elif run.cancelled is not None:  # told already: whoever asks again must not disturb it in undoing what it did
        state.verdict(r.command_id, r.run_id)
    elif not run.begun:
        finish(state, run, held, "cancelled")
        state.verdict(r.command_id, r.run_id)
    else:
        advance(state, run, Cause(held, Cancelled("cancel"), name="cancel", command_id=r.command_id))
        if run.status == "paused":  # parked by this: there is no code to ask, as in the case above
            finish(state, run, held, "cancelled")


def retry_requested(state: PartitionState, held: Held, r: RetryRequested) -> list[Held] | None:
    """Returns the records that a parked run had held back, when it goes on."""
    run = state.run(r.run_id)
    if run is None:
        state.verdict(r.command_id, r.run_id, "unknown", f"no run {r.run_id}")
    elif r.command_id in run.commands:
        state.verdict(r.command_id, r.run_id)
    elif run.status == "paused":
        run.commands[r.command_id] = None
        state.verdict(r.command_id, r.run_id)
        for p in run.pending.values():
            if p.restarts or p.isolated:  # what it killed is forgiven
                p.restarts = p.isolated = 0
                p.saved = False
        return unpark(state, run, held.time)
    elif run.status == "failed":
        go_on_again(state, run, held, run.attempt + 1, r.command_id)
    elif not run.ended and begun_attempt(run) < run.attempt:
        go_on_again(state, run, held, run.attempt, r.command_id)  # it waited behind its own in-place call
    else:
        state.verdict(r.command_id, r.run_id, "not_retriable", f"run {r.run_id} is {run.status}, not failed or paused")
    return None


def begun_attempt(run: Run) -> int:
    """The attempt that the run's code last began."""
    return next((row.attempt for row in reversed(run.history) if row.event in (h.START, h.RETRIED)), 0)


def signal_sent(state: PartitionState, r: SignalSent) -> None:
    """Keep the signal until somebody waits for it."""
    run = state.run(r.run_id)
    if run is None:
        state.verdict(r.command_id, r.run_id, "unknown", f"no run {r.run_id}")
        return
    if r.command_id in run.commands:
        state.verdict(r.command_id, r.run_id)
        return
    if run.ended or run.ending:
        state.verdict(r.command_id, r.run_id, "ended", f"run {r.run_id} has ended: {run.status}", run.status)
        return
    signal = Signal(r.name, r.payload)
    if (told := too_many_signals(r.run_id, run.signals, signal, state.code.max_payload)) is not None:
        state.verdict(r.command_id, r.run_id, "signals_waiting", told)
        return
    run.commands[r.command_id] = None
    if len(run.commands) > _REMEMBERED:
        oldest = next((id for id in run.commands if not by_later_attempt(id)), r.command_id)  # those tell of parents
        del run.commands[oldest]
    run.signals = [*run.signals, signal]
    state.changed(run)
    state.verdict(r.command_id, r.run_id)


# ------------------------------------------------------------------ people


def user_responded(state: PartitionState, held: Held, r: UserResponded) -> None:
    run = state.run(r.run_id)
    if run is None:
        state.verdict(r.command_id, r.run_id, "unknown", f"no run {r.run_id}")
        return
    if r.command_id in run.commands:
        state.verdict(r.command_id, r.run_id)
        return
    path = _question(state, run, r)
    if path is None:
        return
    pending = run.pending[path]
    assert isinstance(pending.ask, UserAsk)
    try:
        answer = check_answer(pending.ask, from_json(r.response))
    except InvalidAnswer as e:
        state.verdict(r.command_id, r.run_id, "invalid_answer", str(e), [o["id"] for o in e.allowed])
        return
    if r.entry is None:  # should it have to wait, it stays the answer to this question
        state.current = r = r._replace(entry=path)
        held = held._replace(value=b"")
    if run.status == "paused":
        _keep_answer(state, held, run, r)
        return
    key = pending.key
    assert key is not None
    cause = Cause(
        held, Resolved(path, answer), "user", key.name, pending.digest, by=r.responder, command_id=r.command_id
    )
    advance(state, run, cause)


def _keep_answer(state: PartitionState, held: Held, run: Run, r: UserResponded) -> None:
    """The run is parked: the answer waits with it, and there can be only one."""
    for other in run.held:
        if is_a(other.value, UserResponded):
            first = decode(other.value)
            if first.entry == r.entry and first.command_id != r.command_id:
                _answered(state, r, first.entry, first.response, first.responder)
                return
            if first.command_id == r.command_id:
                break
    else:
        run.held = [*run.held, state.waiting(held)]
        state.changed(run)
    state.verdict(r.command_id, r.run_id)


def _answered(state: PartitionState, r: UserResponded, entry: str, response: bytes, by: str | None) -> None:
    detail = {"entry": entry, "response": from_json(response), "answered_by": by}
    state.verdict(r.command_id, r.run_id, "already_answered", f"entry {entry} was answered already", detail)


def _was_answered(state: PartitionState, run: Run, r: UserResponded) -> bool:
    """Whether the question was answered before; the verdict then says how."""
    for row in reversed(run.history):
        if row.kind == "user" and row.event == h.RESOLVED and r.entry in (None, row.path):
            _answered(state, r, row.path, row.value or b"null", row.by)
            return True
    return False


def _question(state: PartitionState, run: Run, r: UserResponded) -> str | None:
    """The path of the question that is answered, or None after a verdict against."""
    rid, cid = r.run_id, r.command_id
    if run.ended or run.ending:
        if not _was_answered(state, run, r):
            state.verdict(cid, rid, "ended", f"run {rid} has ended: {run.status}", run.status)
        return None
    asked = [path for path, p in run.pending.items() if isinstance(p.ask, UserAsk) and not p.kept]
    if r.entry is not None:
        if r.entry in asked:
            return r.entry
    elif len(asked) == 1:
        return asked[0]
    elif asked:
        state.verdict(cid, rid, "several_pending", f"run {rid} asks {len(asked)} questions: name the entry", asked)
        return None
    if _was_answered(state, run, r):
        return None
    where = f" at entry {r.entry}" if r.entry is not None else ""
    state.verdict(cid, rid, "not_pending", f"run {rid} asks nothing{where}")
    return None


# ------------------------------------------------------------------ user state


def user_state_asked(state: PartitionState, held: Held, r: UserStateAsked) -> None:
    """Apply one operation to a user's state and reply. Asked twice, it is done once."""
    user = state.user(r.user_id)
    # A later attempt of the run may ask for something else at the same place.
    asker = f"{r.run_id}/{r.path}/{r.version}/{crc32(r.changes):x}"
    reply = user.replies.get(asker)
    if reply is None:
        answer: dict[str, Any] = {}
        if r.op == "write":
            answer["applied"] = r.version is None or r.version == user.version
            if answer["applied"]:
                after = changed(user.state, r.changes)
                told = outgrown(f"user {r.user_id}", user.state, after, state.code.max_payload)
                if told is not None:
                    post_reply(state, held.offset, r.run_id, r.path, refusal(told))
                    return
                user.state = after
                user.version += 1
        answer["version"] = user.version
        if not answer.get("applied"):  # whoever has written knows it; the replies are kept, and a row has its limit
            answer["state"] = {k: from_json(v) for k, v in user.state.items()}
        reply = to_json(answer)
        if answer.get("applied"):  # anything else may be done twice
            user.replies[asker] = reply
            while len(user.replies) > _REPLIES:
                del user.replies[next(iter(user.replies))]
            state.dirty_users[r.user_id] = user
    post_reply(state, held.offset, r.run_id, r.path, reply)


def failure(error_type: str | None, message: str | None, traceback: str | None, step: str | None) -> ErrorInfo | None:
    """The parts of an error in a record, together again."""
    if error_type is None:
        return None
    return ErrorInfo(error_type, message or "", traceback or "", step)
