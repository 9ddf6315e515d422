"""apply(record) -> state and effects: the function that a run is.

Records come in offset order, each exactly once. Records of a routing key that is in the middle of a session write or
of an in-place call wait in that session's queue, which is part of the state.
"""

from __future__ import annotations

from typing import assert_never

from agnt5.replay.protocol import Cancelled
from agnt5_engine.records.avro import decode, encode, is_a
from agnt5_engine.records.journal import (
    CallInterrupted,
    CancelRequested,
    ChildFinished,
    Delivered,
    JournalRecord,
    OwnerClaimed,
    Replied,
    RetryRequested,
    RunFinished,
    RunParked,
    RunRecord,
    RunRequested,
    RunRetried,
    ScheduleBegun,
    SignalSent,
    StateWritten,
    StepBeat,
    StepDispatched,
    StepFailed,
    StepIsolated,
    StepRestarted,
    StepSucceeded,
    TimerFired,
    UserResponded,
    UserStateAsked,
)
from agnt5_engine.records.routing import routing_key
from agnt5_engine.records.rows import Held, make_held
from agnt5_engine.runs import activate, results
from agnt5_engine.runs.activate import park
from agnt5_engine.runs.ask import ask_pending
from agnt5_engine.runs.commands import (
    begun_attempt,
    cancel_requested,
    failure,
    retry_requested,
    run_requested,
    signal_sent,
    user_responded,
    user_state_asked,
)
from agnt5_engine.runs.effects import Append, Execute, InterruptCall, Superseded
from agnt5_engine.runs.finish import finish, go_on_again, unpark
from agnt5_engine.runs.model import DEADLINE, Cause, OpenTurn, Run, Session
from agnt5_engine.runs.pools import step_beat, step_dispatched
from agnt5_engine.runs.schedules import schedule_begun
from agnt5_engine.runs.settle import SETTLE, settle
from agnt5_engine.runs.state import PartitionState

_OF_NO_RUN = (OwnerClaimed, Delivered, UserStateAsked, ScheduleBegun)


def apply(state: PartitionState, offset: int, time: int, record: JournalRecord) -> None:
    """Apply the record at `offset`, which the log stamped `time` (ms)."""
    state.applied = offset
    if time > state.now:
        state.now = time
    claim = getattr(record, "claim", None)
    if claim is not None and claim < state.claim:
        return
    held = make_held(offset, state.now, b"")
    if not isinstance(record, _OF_NO_RUN):
        feed(state, held, record)
    elif isinstance(record, Delivered):
        for id in record.ids:
            _delivered(state, held, id, record.claim)
    elif isinstance(record, UserStateAsked):
        user_state_asked(state, held, record)
    elif isinstance(record, ScheduleBegun):
        schedule_begun(state, held, record)
    else:
        _owner_claimed(state, offset)


def finish_call(
    state: PartitionState, key: str, token: int, result: object = None, error: BaseException | None = None
) -> None:
    """An in-place call of this routing key has returned. One that nobody waits for any more is ignored."""
    session = state.sessions.get(key)
    opened = session.turn if session is not None else None
    if session is None or opened is None or token not in opened.calls or opened.interrupting:
        return
    if activate.finish_call(state, session, token, result, error):
        # As of the record that began the turn: when a call returns is not for the log to know.
        settle(state, opened.run, opened.cause.held)
    else:
        _interrupt(state, session)
    _drain(state, session)


def feed(state: PartitionState, held: Held, record: RunRecord) -> None:
    """Apply a record to its run, unless others of its routing key go first."""
    run_id = record.run_id
    key = routing_key(run_id)
    session = state.sessions.get(key)
    if session is None:
        _apply(state, held, record)
        session = state.sessions.get(key)
        if session is not None:
            _drain(state, session)
        return
    if session.lock is not None and isinstance(record, StateWritten) and session.lock == (run_id, record.path):
        _apply(state, held, record)
    elif session.busy:
        session.queue.append(held._replace(value=encode(record)))
        state.session_changed(session)
        _interrupt(state, session)
    else:
        _apply(state, held, record)
    _drain(state, session)


def _interrupt(state: PartitionState, session: Session) -> None:
    """A cancel or time-out of the run whose turn is open does not wait for its in-place calls.

    How far they have come by then is not in the log, and another owner must come to the same, so it is written first:
    until CallInterrupted is applied nothing that the calls return counts any more. Calls that a new owner makes again
    for what stood in the journal when it came are not interrupted: the owner before may have seen them return, and gone
    on from there."""
    while (opened := session.turn) is not None and not opened.rebuilding and not opened.cause.again:
        run, activation = opened.run, opened.run.activation
        assert activation is not None  # its code is in the middle of calls
        stop = _stop(session, opened)
        if stop is None:
            return
        said = _call_interrupted(session, opened, activation.calls_returned)
        if said is None:
            again = state.live_from is None or opened.cause.held.offset <= state.live_from
            if not again and not opened.interrupting:
                opened.interrupting = True
                record = CallInterrupted(run.run_id, activation.calls_returned, state.claim)
                state.effects += [Append(run.run_id, record), InterruptCall(session.key)]
            return
        interrupted = session.queue.pop(said)
        held = session.queue.pop(stop)
        state.effects.append(InterruptCall(session.key))
        record = decode(held.value)
        if isinstance(record, CancelRequested) and record.force:
            activate.close_turn(state, session)
            _apply(state, held, record)
            continue
        session.queue[opened.records : opened.records] = [held, interrupted]
        opened.records += 2
        digest = 1 + activation.calls_returned
        if isinstance(record, CancelRequested):
            cause = Cause(held, Cancelled("cancel"), name="cancel", digest=digest, command_id=record.command_id)
        else:
            cause = Cause(held, Cancelled("timeout"), name="timeout", digest=digest)
        if activate.interrupt_turn(state, session, opened, cause):
            settle(state, run, held)


def _stop(session: Session, opened: OpenTurn) -> int | None:
    """Where in the queue a cancel or time-out of the run stands that may interrupt its turn."""
    run = opened.run
    told = run.cancelled is not None or isinstance(opened.cause.event, Cancelled)
    for i in range(opened.records, len(session.queue)):
        held = session.queue[i]
        if is_a(held.value, CancelRequested):
            record = decode(held.value)
            new = record.command_id not in run.commands and (record.force or not told)
            if record.run_id == run.run_id and new:
                return i
        elif is_a(held.value, TimerFired):
            record = decode(held.value)
            deadline = run.pending.get(DEADLINE)
            if (record.run_id, record.path) == (run.run_id, DEADLINE) and deadline is not None:
                assert deadline.due is not None
                if held.time >= deadline.due:
                    return i
    return None


def _call_interrupted(session: Session, opened: OpenTurn, returned: int) -> int | None:
    """Where in the queue it is said that the calls were interrupted when so many had returned."""
    for i in range(opened.records, len(session.queue)):
        if is_a(session.queue[i].value, CallInterrupted):
            record = decode(session.queue[i].value)
            if record.run_id == opened.run.run_id and record.returned <= returned:
                return i
    return None


def _drain(state: PartitionState, session: Session) -> None:
    """Apply what waited, in order, until the session is busy again; its own write's StateWritten goes first."""
    while session.queue and session.turn is None:
        first = 0 if session.lock is None else _state_written_in(session)
        if first is None:
            return
        held = session.queue.pop(first)
        state.session_changed(session)
        if held.value.startswith(SETTLE):
            run = state.run(held.value[1:].decode())
            if run is not None:
                settle(state, run, held)
        else:
            record = decode(held.value)
            if isinstance(record, Delivered):
                for id in record.ids:
                    _delivered(state, held._replace(value=b""), id, record.claim)
            else:
                _apply(state, held, record)
        _interrupt(state, session)


def _state_written_in(session: Session) -> int | None:
    """Where in the queue the record of the write in force stands. It is there when what came after the write was
    asked for has waited for an in-place call."""
    for i, held in enumerate(session.queue):
        if is_a(held.value, StateWritten):
            record = decode(held.value)
            if session.lock == (record.run_id, record.path):
                return i
    return None


def resume_queue(state: PartitionState, key: str) -> None:
    """After recovery: go on with what stood in a session's queue."""
    _drain(state, state.session(key))


def _apply(state: PartitionState, held: Held, record: RunRecord) -> None:
    state.current = record
    _dispatch(state, held, record)
    run = state.runs.get(record.run_id)
    if run is not None and (run.signals or run.tells or run.keeps):
        settle(state, run, held)


def _dispatch(state: PartitionState, held: Held, record: RunRecord) -> None:
    match record:
        case StepSucceeded():
            results.step_succeeded(state, held, record)
        case RunFinished():
            run = results.open_run(state, held, record)
            if run is not None and record.attempt == run.attempt:
                error = failure(record.error_type, record.message, record.traceback, record.step)
                finish(state, run, held, record.status, record.output, error)
        case RunRequested():
            run_requested(state, held, record)
        case StepFailed():
            results.step_failed(state, held, record)
        case TimerFired():
            results.timer_fired(state, held, record)
        case CallInterrupted():
            pass  # the calls had returned
        case StateWritten():
            results.write_recorded(state, held, record)
        case Replied():
            results.replied(state, held, record)
        case ChildFinished():
            results.child_finished(state, held, record)
        case SignalSent():
            signal_sent(state, record)
        case UserResponded():
            user_responded(state, held, record)
        case CancelRequested():
            cancel_requested(state, held, record)
        case RetryRequested():
            waited = retry_requested(state, held, record)
            if waited is not None:  # it was parked
                _refeed(state, record.run_id, waited)
                ask_pending(state, state.runs[record.run_id])
        case RunRetried():
            run = results.open_run(state, held, record)
            if run is not None and record.attempt > begun_attempt(run):
                go_on_again(state, run, held, record.attempt)
        case StepRestarted(run_id, path):
            run = state.run(run_id)
            if run is not None and (p := run.pending.get(path)) is not None:
                p.restarts += 1
                p.saved = False
                state.changed(run)
                state.effects.append(Execute(run_id, path))
        case StepIsolated(run_id, path, begin):
            run = state.run(run_id)
            if run is not None and (p := run.pending.get(path)) is not None:
                p.isolated = p.isolated + 1 if begin else 0
                p.saved = False
                state.changed(run)
                state.effects.append(Execute(run_id, path))
        case StepDispatched():
            step_dispatched(state, record)
        case StepBeat():
            step_beat(state, held, record)
        case RunParked(run_id, _, reason, detail):
            run = state.run(run_id)
            if run is not None and not run.ended and run.status != "paused":
                park(state, run, None, reason, detail)
        case _:
            assert_never(record)


def _refeed(state: PartitionState, run_id: str, held: list[Held]) -> None:
    """Put records that a parked run held back in front of its session's queue; the caller drains it."""
    if held:
        session = state.session(routing_key(run_id))
        front = session.turn.records if session.turn is not None else 0
        session.queue[front:front] = held
        state.session_changed(session)


def _delivered(state: PartitionState, held: Held, id: str, claim: int) -> None:
    row = state.outbox.pop(id, None)
    if row is not None:
        state.dirty_outbox[id] = None
        if row.run_id is not None and row.path is not None:
            feed(state, held, Replied(row.run_id, row.path, b"null"))
        return
    # Perhaps not posted yet, because what posts it waits in a queue for an in-place call: then this waits there too.
    session = state.sessions.get(routing_key(id.partition(":")[2].partition("/")[0]))
    if session is not None and session.busy:
        session.queue.append(held._replace(value=encode(Delivered([id], claim))))
        state.session_changed(session)


def _owner_claimed(state: PartitionState, offset: int) -> None:
    state.claim = offset
    state.effects.append(Superseded(offset))
    for run_id in sorted(state.paused):
        run = state.run(run_id)
        if run is None or run.status != "paused":
            state.paused.discard(run_id)
            continue
        if run.pause_reason == "poison":
            continue
        session = state.session(run.key)
        _refeed(state, run_id, unpark(state, run, state.now))
        _drain(state, session)
        if run.status != "paused":
            settle(state, run, Held(offset, state.now, b""))
            ask_pending(state, run)


def revive(state: PartitionState, run: Run) -> bool:
    """Bring the run's code back into memory; False when that has to wait. Where it waits for in-place calls, the shell
    is woken to make them: no record is being applied after which it would look for effects."""
    done = activate.revive(state, run, Held(state.applied, state.now, SETTLE + run.run_id.encode()))
    if state.effects:
        state.wake()
    return done
