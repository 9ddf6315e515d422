"""Taking a turn into the state: what an activation asked for becomes what its run waits for, and a history row."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from agnt5.errors import is_final
from agnt5.replay.protocol import (
    Ask,
    Cancelled,
    ChildAsk,
    Completed,
    EmitAsk,
    Errored,
    ErrorInfo,
    Failed,
    Resolved,
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
from agnt5_engine.records.journal import RunFinished, RunRetried
from agnt5_engine.records.rows import AskNote, HistoryRow, Mark, Read, make_ask_note, make_history_row
from agnt5_engine.runs import history as h
from agnt5_engine.runs.effects import Abandon, Append, Moved, SetTimer, make_execute
from agnt5_engine.runs.model import DEADLINE, END, SIGNAL, Cause, EndAsk, Pending, Run
from agnt5_engine.runs.outbox import post_child, post_emit, post_tell, post_user_state, withdraw_child
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.runs.writes import lock, release

_NONE: list[Any] = []  # in the rows of most records: never changed


def drop_activation(run: Run) -> None:
    if run.activation is not None:
        run.activation.evict()
        run.activation = None


def moved(state: PartitionState, run: Run) -> None:
    if run.run_id in state.watched:
        state.effects.append(Moved(run.run_id))


def commit(state: PartitionState, run: Run, cause: Cause, turn: Turn, time: int) -> None:
    """The activation is over: what it asked for becomes the run's state."""
    event, path, kind, name = cause.event, "", cause.kind, cause.name
    value: bytes | None = None
    error: ErrorInfo | None = None
    match event:
        case Resolved():
            path, value = event
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
    row = make_history_row(
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
            lock(state, run, ask)
    if turn.outcome is not None:
        _end(state, run, turn, time)
    if state.watched:
        moved(state, run)


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
            effects.append(make_execute(run.run_id, ask.path))
            return make_ask_note(ask.path, "step", ask.name, None)
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
            post_child(state, run, ask)
        case UserStateAsk():
            post_user_state(state, run, ask)
        case EmitAsk():
            post_emit(state, run, ask)
        case TellChildAsk():
            post_tell(state, run, ask)
            run.tells += 1
        case WriteAsk():
            pass  # `commit` locks it at the end, unless it is withdrawn in the same turn
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


def _end(state: PartitionState, run: Run, turn: Turn, time: int) -> None:
    """The code has ended: ask for the record that says so."""
    record: RunFinished | RunRetried
    rid, claim = run.run_id, state.claim
    match turn.outcome:
        case Completed():
            (output,) = turn.outcome
            record = RunFinished(rid, run.attempt, "completed", output, None, None, None, None, claim)
        case Errored(e):
            workflow = state.code.workflow(run.workflow)
            retries = workflow.retries if workflow is not None else 0
            if run.attempt < retries and run.cancelled is None and not is_final(e):
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
