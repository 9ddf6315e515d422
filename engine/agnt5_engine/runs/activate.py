"""Driving a run's code: deliver an event, take what it asks for into the state.

An activation counts as a whole or not at all. Where its code makes in-place calls, the turn stays open: the record
that caused it stands first in the session's queue, the rows know nothing of the turn, and other records of the
routing key wait until `finish_call` has closed it.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from agnt5.errors import NonDeterminismError
from agnt5.replay.activation import Activation
from agnt5.replay.protocol import (
    Ask,
    Cancelled,
    ChildAsk,
    Completed,
    EmitAsk,
    EntryKey,
    Errored,
    ErrorInfo,
    Failed,
    Resolved,
    RunInfo,
    SignalAsk,
    SleepAsk,
    StepAsk,
    Stopped,
    TellChildAsk,
    TimedOut,
    Turn,
    UserAsk,
    UserStateAsk,
    WriteAsk,
    ask_digest,
    ask_key,
)
from agnt5_engine.records.avro import decode, is_a
from agnt5_engine.records.journal import Replied, RunFinished, RunRetried, StateWritten
from agnt5_engine.records.rows import AskNote, Held, HistoryRow, Mark, Read
from agnt5_engine.runs import history as h
from agnt5_engine.runs.effects import Abandon, Append, Call, Effect, Execute, Moved, SetTimer
from agnt5_engine.runs.model import DEADLINE, END, SIGNAL, Cause, EndAsk, OpenTurn, Pending, Run, Session
from agnt5_engine.runs.outbox import post_child, post_emit, post_tell, post_user_state, withdraw_child
from agnt5_engine.runs.state import PartitionState

_REVIVAL = "revival"
_NONE: list[Any] = []  # in the rows of most records: never changed


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
    """Bring the code of a begun run back into memory, without an event: for a step that only the code itself can name.
    False when that has to wait: its session is busy, its turn is now open, or it was parked."""
    if run.activation is not None:
        return True
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
    moved(state, run, ended=False)


def drop_activation(run: Run) -> None:
    if run.activation is not None:
        run.activation.evict()
        run.activation = None


def moved(state: PartitionState, run: Run, *, ended: bool) -> None:
    if run.run_id in state.watched:
        state.effects.append(Moved(run.run_id, ended))


# ------------------------------------------------------------------ taking a turn into the state


def commit(state: PartitionState, run: Run, cause: Cause, turn: Turn, time: int) -> None:
    """The activation is over: what it asked for becomes the run's state."""
    event, path, kind, name = cause.event, "", cause.kind, cause.name
    value: bytes | None = None
    error: ErrorInfo | None = None
    match event:
        case Resolved(path, value):
            what = h.KEPT if cause.kept else h.RESOLVED
            state.drop_pending(run, path)
            if kind == SIGNAL and not cause.kept:
                _take_signal(run, name)
        case Failed(path, error):
            what = h.FAILED
            state.drop_pending(run, path)
        case TimedOut(path):
            what = h.TIMED_OUT
            state.drop_pending(run, path)
        case Cancelled(name):
            what = h.CANCELLED
            if name == "timeout":
                state.drop_pending(run, DEADLINE)
            if name == "timeout" or run.cancelled is None:
                run.cancelled = name
        case None:
            what = h.RETRIED if cause.again else h.START
            if not cause.again:
                run.started_at = time
    if cause.again:
        _note_retry(state, run, time)
    notes: list[AskNote] = []
    for ask in turn.asks:
        note = _take(state, run, ask, time)
        if note is not None:
            notes.append(note)
    for gone in turn.withdrawn:
        _withdraw(state, run, gone)
    row = HistoryRow(
        run.seq, time, what if not cause.again else h.KEPT, path, kind, name, cause.attempt, cause.digest, value,
        error.type if error else None, error.message if error else None, error.traceback if error else None,
        error.step if error else None, cause.by,
        [Read(p, v) for p, v in turn.reads] if turn.reads else _NONE,
        [Mark(n, v) for n, v in turn.marks] if turn.marks else _NONE,
        notes,
    )  # fmt: skip
    if cause.again:
        last = run.history.pop()
        run.seq = last.seq
        row = last._replace(asks=notes)
    state.note(run, row, h.public_count(row))
    if cause.command_id is not None or kind == SIGNAL or not isinstance(event, Resolved | Failed | TimedOut):
        state.changed(run)
    if cause.command_id is not None:
        run.commands[cause.command_id] = None
        state.verdict(cause.command_id, run.run_id)
    for ask in turn.asks:
        if isinstance(ask, WriteAsk) and (p := run.pending.get(ask.path)) is not None and not p.kept:
            _lock(state, run, ask)
    if turn.outcome is not None:
        _end(state, run, turn, time)
    if state.watched:
        moved(state, run, ended=False)


def _take_signal(run: Run, name: str) -> None:
    """The oldest signal of that name has been taken."""
    taken = next(i for i, signal in enumerate(run.signals) if signal.name == name)
    run.signals = run.signals[:taken] + run.signals[taken + 1 :]


def _note_retry(state: PartitionState, run: Run, time: int) -> None:
    """The new attempt's beginning and what it took over, as rows that replay starts from."""
    assert run.activation is not None
    for i, past in enumerate(run.activation.kept):
        value = past.event.value if isinstance(past.event, Resolved) else None
        path = past.event.path if isinstance(past.event, Resolved) else ""
        row = HistoryRow(
            run.seq, time, h.KEPT if i else h.RETRIED, path, past.kind, past.name, run.attempt, past.digest, value,
            None, None, None, None, None, [Read(*r) for r in past.reads], [Mark(*m) for m in past.marks], [],
        )  # fmt: skip
        state.note(run, row, h.public_count(row))


def _take(state: PartitionState, run: Run, ask: Ask, time: int) -> AskNote | None:
    """Have it done, unless an earlier attempt of the run has its result."""
    effects = state.effects
    data = None
    if run.attempt and earlier_result(run, ask) is not None:
        run.pending[ask.path] = p = Pending(ask, time)
        p.kept = True
        run.keeps += 1
        return None
    match ask:
        case StepAsk():
            run.pending[ask.path] = Pending(ask, time)
            effects.append(Execute(run.run_id, ask.path))
            return AskNote(ask.path, "step", ask.name, None)
        case SleepAsk(due=due):
            effects.append(SetTimer(due, run.run_id, ask.path))
        case UserAsk(due=due):
            if due is not None:
                effects.append(SetTimer(due, run.run_id, ask.path))
            data = question_json(ask)
        case SignalAsk(due=due):
            if due is not None:
                effects.append(SetTimer(due, run.run_id, ask.path))
        case ChildAsk():
            ask = post_child(state, run, ask)
        case UserStateAsk():
            post_user_state(state, run, ask)
        case EmitAsk():
            post_emit(state, run, ask)
        case TellChildAsk():
            post_tell(state, run, ask)
            run.tells += 1
        case WriteAsk():
            pass  # locked below, unless withdrawn in the same turn
    run.pending[ask.path] = Pending(ask, time)
    path, kind, name = ask_key(ask)
    return AskNote(path, kind, name, data)


def earlier_result(run: Run, ask: Ask) -> HistoryRow | None:
    """What an earlier attempt of the run has of this entry, if it asked for the same: that is not done again."""
    if run.earlier is None:
        run.earlier = h.earlier_results(run.history)
    row = run.earlier.get(ask.path)
    return (
        row
        if row is not None and (*ask_key(ask), ask_digest(ask)) == (row.path, row.kind, row.name, row.digest)
        else None
    )


def question_json(ask: UserAsk) -> bytes:
    return to_json({"question": ask.question, "input_type": ask.input_type})


def _withdraw(state: PartitionState, run: Run, path: str) -> None:
    p = state.drop_pending(run, path)
    if p is None or p.kept:
        return
    match p.ask:
        case StepAsk():
            state.effects.append(Abandon(run.run_id, path, p))
        case WriteAsk():
            release(state, run)
        case ChildAsk():
            withdraw_child(state, run, p.ask)
        case _:
            pass  # a timer or reply that comes later finds nothing pending; what a child is told is on its way


def _lock(state: PartitionState, run: Run, ask: WriteAsk) -> None:
    session = state.session(run.key)
    if _was_written(session, run, ask):
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


def _end(state: PartitionState, run: Run, turn: Turn, time: int) -> None:
    """The code has ended: ask for the record that says so."""
    record: RunFinished | RunRetried
    rid, claim = run.run_id, state.claim
    match turn.outcome:
        case Completed(output):
            record = RunFinished(rid, run.attempt, "completed", output, None, None, None, None, claim)
        case Errored(e):
            workflow = state.code.workflow(run.workflow)
            retries = workflow.retries if workflow is not None else 0
            if run.attempt < retries and run.cancelled is None and not e.type.endswith(("FatalError", "InputError")):
                record = RunRetried(rid, run.attempt + 1, e.type, e.message, e.traceback, e.step, claim)
            else:
                record = RunFinished(rid, run.attempt, "failed", None, e.type, e.message, e.traceback, e.step, claim)
        case Stopped() | None:
            status = "timeout" if run.cancelled == "timeout" else "cancelled"
            late = status == "timeout"
            record = RunFinished(
                rid, run.attempt, status, None, "TimeoutError" if late else None,
                "the run's own timeout passed" if late else None, None, None, claim,
            )  # fmt: skip
    run.pending[END] = Pending(EndAsk(END, record), time)
    drop_activation(run)
    state.effects.append(Append(rid, record))
