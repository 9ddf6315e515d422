"""What came of the things a run asked for: results, failures, timers, replies, the ends of children, session writes."""

from __future__ import annotations

from agnt5.replay.protocol import (
    Cancelled,
    ChildAsk,
    EmitAsk,
    ErrorInfo,
    Failed,
    Resolved,
    SignalAsk,
    SleepAsk,
    StepAsk,
    TimedOut,
    UserAsk,
    UserStateAsk,
    WriteAsk,
    ask_key,
    make_resolved,
)
from agnt5.state import changed
from agnt5_engine.records.journal import (
    ChildFinished,
    Replied,
    RunFinished,
    RunRecord,
    RunRetried,
    StateWritten,
    StepFailed,
    StepSucceeded,
    TimerFired,
)
from agnt5_engine.records.rows import Held, HistoryRow
from agnt5_engine.runs import history as h
from agnt5_engine.runs.activate import advance
from agnt5_engine.runs.commit import moved
from agnt5_engine.runs.effects import Append, Execute, SetTimer
from agnt5_engine.runs.model import Cause, Run, make_cause
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.runs.writes import is_locked, refused, state_written

#: Before a timer that came too early is tried again: the log's time may stand still, where its clock was set back.
_EARLY_MS = 50


def open_run(state: PartitionState, held: Held, record: RunRecord) -> Run | None:
    """The record's run, if it goes on now. A parked run's record is kept for later."""
    run = state.run(record.run_id)
    if run is None or run.ended:
        return None
    if run.ending and not isinstance(record, RunFinished | RunRetried):
        return None
    if run.status == "paused":
        _hold(state, run, held)
        return None
    return run


def _hold(state: PartitionState, run: Run, held: Held) -> None:
    run.held = [*run.held, state.waiting(held)]
    state.changed(run)


def step_succeeded(state: PartitionState, held: Held, r: StepSucceeded) -> None:
    run = open_run(state, held, r)
    if run is not None and (p := run.pending.get(r.path)) is not None and isinstance(p.ask, StepAsk):
        event = make_resolved(r.path, r.result)
        advance(state, run, make_cause(held, event, "step", p.ask.name, p.digest, r.attempt))


def replied(state: PartitionState, held: Held, r: Replied) -> None:
    run = open_run(state, held, r)
    if run is None or (p := run.pending.get(r.path)) is None:
        return
    if not isinstance(p.ask, UserStateAsk | EmitAsk | WriteAsk) or is_locked(state, run, r.path):
        return
    _, kind, name = ask_key(p.ask)
    event: Resolved | Failed = Resolved(r.path, r.value)
    if isinstance(p.ask, UserStateAsk | WriteAsk) and (told := refused(r.value)) is not None:
        scope = "ctx.user.state" if isinstance(p.ask, UserStateAsk) else "ctx.session.state"
        event = Failed(r.path, ErrorInfo("ValueError", told, "", scope))
    advance(state, run, Cause(held, event, kind, name, p.digest))


def step_failed(state: PartitionState, held: Held, r: StepFailed) -> None:
    run = open_run(state, held, r)
    if run is None or (p := run.pending.get(r.path)) is None or not isinstance(p.ask, StepAsk):
        return
    if r.attempt != p.attempt:
        return
    error = ErrorInfo(r.error_type, r.message, r.traceback, p.ask.name, r.attempt + 1)
    if r.retry_at is None:
        cause = Cause(held, Failed(r.path, error), "step", p.ask.name, p.digest, r.attempt)
        advance(state, run, cause)
        return
    p.attempt += 1
    p.retry_at = r.retry_at
    p.restarts = p.isolated = 0
    p.dispatched, p.beat_at = False, None
    p.saved = False
    row = HistoryRow(
        run.seq, held.time, h.ATTEMPT_FAILED, r.path, "step", p.ask.name, r.attempt, 0, str(r.retry_at).encode(),
        r.error_type, r.message, r.traceback, p.ask.name, None, [], [], [],
    )  # fmt: skip
    state.note(run, row, 1)
    state.effects.append(Execute(run.run_id, r.path))
    moved(state, run)


def timer_fired(state: PartitionState, held: Held, r: TimerFired) -> None:
    run = open_run(state, held, r)
    if run is None or (p := run.pending.get(r.path)) is None or (due := p.due) is None:
        return
    if held.time < due:
        state.effects.append(SetTimer(max(due, held.time + _EARLY_MS), r.run_id, r.path))
        return
    key = p.key
    if key is None:
        cause = Cause(held, Cancelled("timeout"), name="timeout")
    elif isinstance(p.ask, SleepAsk):
        cause = Cause(held, Resolved(r.path, b"null"), key.kind, key.name)
    else:
        assert isinstance(p.ask, UserAsk | SignalAsk)
        cause = Cause(held, TimedOut(r.path), key.kind, key.name)
    advance(state, run, cause)


def child_finished(state: PartitionState, held: Held, r: ChildFinished) -> None:
    run = open_run(state, held, r)
    if run is None or (p := run.pending.get(r.path)) is None or not isinstance(p.ask, ChildAsk):
        return
    event: Resolved | Failed
    if r.status == "completed":
        event = Resolved(r.path, r.output or b"null")
    elif r.attempt != run.attempt:
        return  # how it ended when an earlier attempt had asked; it has been asked to go on
    else:
        error_type = r.error_type or ("TimeoutError" if r.status == "timeout" else "CancelledError")
        message = r.message or f"child run {r.child_run_id} is {r.status}"
        event = Failed(r.path, ErrorInfo(error_type, message, r.traceback or "", p.ask.workflow))
    advance(state, run, Cause(held, event, "child", p.ask.workflow, p.digest))


def write_recorded(state: PartitionState, held: Held, r: StateWritten) -> None:
    run = state.run(r.run_id)
    if run is None or run.ended:
        return
    session = state.session(run.key)
    if session.lock == (r.run_id, r.path):
        p = run.pending[r.path]
        assert isinstance(p.ask, WriteAsk)
        if r.base != session.base:
            state.effects.append(Append(r.run_id, state_written(state, session, r.run_id, p.ask)))
            return
    elif run.status != "paused" or r.base != session.base:
        # Without the lock, only the write of a run that has been parked since counts: code that fitted asked for it,
        # and what others of the session wrote after it builds on it. The run is told when it goes on.
        return
    session.state = changed(session.state, r.changes)
    session.base = held.offset
    session.lock = None
    state.session_changed(session)
    # Done, whatever becomes of telling the run: should that have to wait, this is what waits, not the write.
    state.current = done = Replied(r.run_id, r.path, b"null")
    replied(state, held._replace(value=b""), done)
