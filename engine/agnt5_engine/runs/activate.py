"""Driving a run's code: deliver an event, take what it asks for into the state.

An activation counts as a whole or not at all. Where its code makes in-place calls, the turn stays open: the record
that caused it stands first in the session's queue, the rows know nothing of the turn, and other records of the
routing key wait until `finish_call` has closed it.
"""

from __future__ import annotations

from contextlib import suppress

from agnt5.errors import NonDeterminismError
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import EntryKey, RunInfo, Turn
from agnt5_engine.records.rows import Held, HistoryRow
from agnt5_engine.runs import history as h
from agnt5_engine.runs.commit import commit, drop_activation, moved
from agnt5_engine.runs.effects import Call
from agnt5_engine.runs.model import Cause, OpenTurn, Run, Session
from agnt5_engine.runs.state import PartitionState

_REVIVAL = "revival"


class _View:
    """A run's session, as an activation reads it."""

    __slots__ = ("key", "state")

    def __init__(self, state: PartitionState, key: str) -> None:
        self.state = state
        self.key = key

    def session_state(self) -> dict[str, bytes]:
        return self.state.session(self.key).state


def run_info(run: Run) -> RunInfo:
    return RunInfo(run.run_id, run.workflow, run.session, run.user, run.attempt, run.metadata, run.envelope)


def advance(state: PartitionState, run: Run, cause: Cause) -> bool:
    """Deliver the cause to the run's code. False when the run did not take it: parked, or its turn is still open."""
    if cause.held.offset == state.poison_offset:
        detail = f"applying the journal record at offset {cause.held.offset} to it killed its processor again and again"
        _put_aside(state, run, cause, "poison", detail)
        return False
    time = cause.held.time
    if run.history and run.history[-1].time > time:
        time = run.history[-1].time
    try:
        activation = run.activation
        if activation is None:
            activation = _activation(state, run)
            if activation is None:
                detail = f"no workflow {run.workflow!r} in this processor's code"
                _put_aside(state, run, cause, "unknown_workflow", detail)
                return False
            if run.begun and not cause.again:
                turn = activation.rebuild(h.replayed(run.history), _pending_keys(run))
                if turn.calls:
                    _open(state, run, cause, turn, time, rebuilding=True)
                    return False
        if cause.event is not None:
            turn = activation.deliver(time, cause.event)
        elif cause.again:
            turn = activation.resume_failed(time, h.replayed(run.history))
        else:
            turn = activation.start(time)
    except NonDeterminismError as e:
        _put_aside(state, run, cause, "non_determinism", str(e))
        return False
    if turn.calls:
        _open(state, run, cause, turn, time, rebuilding=False)
        return False
    commit(state, run, cause, turn, time)
    return True


def _activation(state: PartitionState, run: Run) -> Activation | None:
    workflow = state.code.workflow(run.workflow)
    if workflow is None:
        return None
    run.activation = Activation(
        workflow, run_info(run), run.input, _View(state, run.key), state.listener(run.run_id),
        max_payload=state.code.max_payload,
    )  # fmt: skip
    return run.activation


def _pending_keys(run: Run) -> dict[str, EntryKey]:
    return {path: key for path, p in run.pending.items() if (key := p.key) is not None}


def revive(state: PartitionState, run: Run, held: Held) -> bool:
    """Bring the code of a begun run back into memory, without an event: for a step whose function only that code has.

    False when that has to wait: the session is busy, the run was parked, or the rebuild itself has in-place calls to
    make, before which the code does not know all its steps."""
    if run.activation is not None:
        return not run.activation.replaying
    session = state.sessions.get(run.key)
    if session is not None and session.busy:
        return False
    try:
        activation = _activation(state, run)
        if activation is None:
            park(state, run, None, "unknown_workflow", f"no workflow {run.workflow!r} in this processor's code")
            return False
        turn = activation.rebuild(h.replayed(run.history), _pending_keys(run))
    except NonDeterminismError as e:
        park(state, run, None, "non_determinism", str(e))
        return False
    if turn.calls:
        _open(state, run, Cause(held, None, kind=_REVIVAL), turn, held.time, rebuilding=True)
        return False
    return True


def prepare(state: PartitionState, run: Run) -> None:
    """Bring the code of a run that waits back into memory, since it will be wanted soon. What cannot be done without
    consequences is left to whoever delivers the event: in-place calls, and code that does not fit the history. Code
    that has ended is let go again: a retry begins with fresh code."""
    session = state.sessions.get(run.key)
    if run.activation is not None or not run.begun or run.ended or run.status == "paused":
        return
    if session is not None and session.busy:
        return
    try:
        activation = _activation(state, run)
        if activation is None:
            return
        turn = activation.rebuild(h.replayed(run.history), _pending_keys(run))
    except NonDeterminismError:
        drop_activation(run)
        return
    except BaseException:
        drop_activation(run)  # nobody is to go on with what was brought back by half
        raise
    if turn.calls or activation.ended:
        drop_activation(run)


def derived_state(state: PartitionState, run: Run) -> dict[str, bytes] | None:
    """The own state of a run that has left memory for good, by going through its history once more. None when that
    cannot be told (any more): its code calls in place, has changed or is not here."""
    past = h.replayed(run.history)
    try:
        activation = _activation(state, run)
        if activation is None:
            return None
        with suppress(NonDeterminismError):  # also: what it waited for when it was ended from outside
            activation.rebuild(past, {}, verify_only=True)
        return activation.run_state() if activation.replayed == len(past) else None
    finally:
        drop_activation(run)


def _open(state: PartitionState, run: Run, cause: Cause, turn: Turn, time: int, *, rebuilding: bool) -> None:
    session = state.session(run.key)
    cause = cause._replace(held=state.waiting(cause.held))
    session.turn = OpenTurn(run, cause, time, rebuilding)
    session.queue.insert(0, cause.held)
    state.session_changed(session)
    _add_to_turn(state, session.turn, turn)


def finish_call(
    state: PartitionState, session: Session, token: int, result: object, error: BaseException | None
) -> bool:
    """Give an in-place call's result to its activation. True when the turn is closed, and the queue may go on."""
    opened = session.turn
    assert opened is not None
    run, cause, activation = opened.run, opened.cause, opened.run.activation
    assert activation is not None
    try:
        turn = activation.finish_call(opened.calls.pop(token), result, error)
        _add_to_turn(state, opened, turn)
        if not opened.calls and opened.rebuilding:
            opened.rebuilding = False
            if cause.kind == _REVIVAL:
                _leave_turn(state, session)
                return True
            assert cause.event is not None
            turn = activation.deliver(opened.time, cause.event)
            opened.turn = Turn()  # what the rebuild asked for again is known
            _add_to_turn(state, opened, turn)
    except NonDeterminismError as e:  # of a rebuild
        _leave_turn(state, session)
        _put_aside(state, run, cause, "non_determinism", str(e))
        return True
    if opened.calls:
        return False
    close_turn(state, session)
    return True


def interrupt_turn(state: PartitionState, session: Session, opened: OpenTurn, cause: Cause) -> bool:
    """Tell the run that it is to stop, in the middle of its calls. True when the turn is closed: what came before and
    what comes of this count together, since neither could be replayed without the other."""
    activation = opened.run.activation
    assert activation is not None
    assert cause.event is not None
    opened.before.append((opened.cause, opened.turn, opened.time))
    opened.cause, opened.turn, opened.time = cause, Turn(), max(opened.time, cause.held.time)
    opened.calls, opened.interrupting = {}, False
    state.session_changed(session)
    _add_to_turn(state, opened, activation.deliver(opened.time, cause.event))
    if opened.calls:
        return False
    close_turn(state, session)
    return True


def _add_to_turn(state: PartitionState, opened: OpenTurn, turn: Turn) -> None:
    """Take in another stretch of an open turn, and have its calls run. Their tokens are known to this partition alone:
    a call that returns after it was given up must not be taken for one of another run of the session."""
    opened.merge(turn)
    for call in turn.calls:
        state.calls += 1
        opened.calls[state.calls] = call.token
        state.effects.append(Call(opened.run.key, opened.run.run_id, call._replace(token=state.calls)))


def close_turn(state: PartitionState, session: Session) -> None:
    """Take the open turn into the state as far as it has come."""
    opened = session.turn
    assert opened is not None
    _leave_turn(state, session)
    for cause, turn, time in opened.before:
        commit(state, opened.run, cause, turn, time)
    commit(state, opened.run, opened.cause, opened.turn, opened.time)


def _leave_turn(state: PartitionState, session: Session) -> None:
    assert session.turn is not None
    del session.queue[: session.turn.records]
    session.turn = None
    state.session_changed(session)


def _put_aside(state: PartitionState, run: Run, cause: Cause, reason: str, detail: str) -> None:
    """Park the run with the record that it does not take. A command has been accepted all the same: it is kept."""
    park(state, run, cause.held, reason, detail)
    if cause.command_id is not None:
        state.verdict(cause.command_id, run.run_id)


def park(state: PartitionState, run: Run, held: Held | None, reason: str, detail: str) -> None:
    """Put the run aside, as it was before the record, until other code comes."""
    drop_activation(run)
    if held is not None:
        run.held = [*run.held, state.waiting(held)]
    run.status, run.pause_reason, run.pause_detail = "paused", reason, detail
    state.paused.add(run.run_id)
    state.changed(run)
    row = HistoryRow(
        run.seq, held.time if held else state.now, h.PAUSED, "", "", reason, run.attempt, 0, None, None, detail,
        None, None, None, [], [], [],
    )  # fmt: skip
    state.note(run, row, 1)
    moved(state, run)
