"""What a checkpoint writes: the rows that changed since the last one, and what may then leave memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from agnt5.replay.making import maker
from agnt5.replay.protocol import UserAsk
from agnt5_engine.records.avro import decode, encode, head
from agnt5_engine.records.routing import routing_key
from agnt5_engine.records.rows import HistoryRow, PendingRow, SessionRow
from agnt5_engine.runs import table
from agnt5_engine.runs.commit import drop_activation
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.rows import pending_row, run_row, session_row, user_row
from agnt5_engine.runs.state import PartitionState

#: A finished run's history stands inside its row up to so many entries, and about so many bytes of payload.
_INLINE_ROWS, _INLINE_BYTES = 500, 128 * 1024
#: A live run's up to so many, input included: its row is written anew at each checkpoint in which the run has moved.
_LIVE_ROWS, _LIVE_BYTES = 16, 4 * 1024

#: A checkpoint deletes at most so many rows of forgotten runs, or so many for each row that it writes: a run that came
#: and went between two checkpoints is written as one row, and deleted as three.
_LET_GO, _TIMES = 1000, 4
#: Early cancels that one checkpoint looks through for old ones.
_SWEPT = 100


class Row(NamedTuple):
    key: bytes
    value: bytes | None  # None deletes
    of: Any = None  # what the value encodes, or (of a deleted pending row) the Pending; None where only bytes are known


make_row = maker(Row)


def changes(state: PartitionState) -> list[Row]:
    """What a checkpoint writes: what has changed, and so much of what is forgotten that it keeps pace with that."""
    rows = collect(state)
    return rows + expire(state, limit=max(_LET_GO, _TIMES * len(rows)))


def collect(state: PartitionState) -> list[Row]:
    """Take the changes since the last call, as primary rows. The state is then clean: if they cannot be written, the
    partition must be given up and recovered."""
    rows: list[Row] = []
    for run in state.dirty_runs.values():
        _run_rows(run, rows)
    for session in state.dirty_sessions.values():
        rows.append(make_row(table.session_row_key(session.key), encode(session_row(session))))
    for user in state.dirty_users.values():
        rows.append(make_row(table.user_row_key(user.user_id), encode(user_row(user))))
    for id in state.dirty_outbox:
        row = state.outbox.get(id)
        if row is not None:
            rows.append(make_row(table.outbox_key(id), encode(row)))
            state.stored_outbox.add(id)
        elif id in state.stored_outbox:  # else posted and delivered since the last checkpoint: nothing to delete
            rows.append(make_row(table.outbox_key(id), None))
            state.stored_outbox.discard(id)
    for run_id in state.dirty_cancels:
        cancel = state.early_cancels[run_id]
        rows.append(make_row(table.early_cancel_key(run_id), encode(cancel) if cancel is not None else None))
    for key in state.dirty_schedules:
        rows.append(make_row(table.schedule_key(key), encode(state.schedules[key])))
    state.dirty_runs, state.dirty_sessions, state.dirty_users = {}, {}, {}
    state.dirty_outbox, state.dirty_cancels, state.dirty_schedules = {}, {}, {}
    return rows


def _run_rows(run: Run, rows: list[Row]) -> None:
    alone = run.saved == 0  # its history has no rows of its own so far
    inline = alone and _is_small(run)
    run_id = run.run_id
    if run.replaces is not None:
        rows += _forgotten_rows(run.replaces)
        run.replaces = None
    if run.head_changed or not run.stored or alone:
        head = run_row(run, inline=inline)
        rows.append(make_row(table.run_key(run_id), encode(head), head))
        run.head_changed = False
    if not inline:
        rows.extend(
            make_row(table.history_key(run_id, i), encode(run.history[i])) for i in range(run.saved, len(run.history))
        )
        run.saved = len(run.history)
    for path, gone in run.gone.items():
        if path not in run.pending:
            rows.append(make_row(table.pending_key(run_id, path), None, gone))
        elif isinstance(gone.ask, UserAsk):  # asked again: it has another place among the questions
            rows.append(make_row(table.asked_key(gone.asked_at, table.pending_key(run_id, path)[1:]), None))
    run.gone = {}
    for path, p in run.pending.items():
        if not p.saved:
            row = pending_row(run_id, path, p)
            rows.append(make_row(table.pending_key(run_id, path), encode(row), row))
            p.saved = p.stored = True
    run.stored = True


def _forgotten_rows(old: Run) -> list[Row]:
    """What is left of a run that retention let go of, when another is started under its ID."""
    rows = [Row(table.created_key(old.created_at, old.run_id.encode()), None)]
    rows += [Row(table.history_key(old.run_id, i), None) for i in range(old.saved)]
    rows += [Row(table.pending_key(old.run_id, path), None, p) for path, p in old.gone.items()]
    return rows


def _is_small(run: Run) -> bool:
    if run.ended:
        return len(run.history) <= _INLINE_ROWS and sum(map(_payload, run.history)) <= _INLINE_BYTES
    if len(run.history) > _LIVE_ROWS:
        return False
    around = len(run.input) + len(run.envelope or b"")
    around += sum(len(signal.payload) for signal in run.signals) + sum(len(held.value) for held in run.held)
    return around + sum(map(_payload, run.history)) <= _LIVE_BYTES


def _payload(row: HistoryRow) -> int:
    size = len(row.value) if row.value else 0
    if row.reads:
        size += sum(len(read.value) for read in row.reads)
    if row.traceback:
        size += len(row.traceback)
    return size


def expire(state: PartitionState, limit: int) -> list[Row]:
    """Rows of what retention has let go of, as deletions (derived rows too). Call after `collect`."""
    rows: list[Row] = []
    gone: set[bytes] = set()
    keys: set[str] = set()
    for key, _ in state.rows.scan(table.BY_FINISHED):
        finished_at, run_id = table.finished_of(key)
        if len(rows) >= limit or finished_at + state.retention_ms >= state.now:
            break
        rows.append(Row(key, None))
        data = state.rows.get(table.run_key(run_id))
        row = decode(data) if data is not None else None
        run = state.runs.get(run_id)
        if row is None or row.finished_at != finished_at or (run is not None and run.finished_at != finished_at):
            continue  # it lives again, or ended anew, or another was started under its ID
        state.runs.pop(run_id, None)
        rows.append(Row(table.run_key(run_id), None))
        rows.append(Row(table.created_key(row.created_at, run_id.encode()), None))
        rows += [Row(k, None) for k, _ in state.rows.scan(table.history_prefix(run_id))]
        gone.add(table.run_key(run_id))
        if (row.session_id or run_id) == routing_key(run_id):
            keys.add(routing_key(run_id))
    for key_of_run in keys:
        if not _has_runs(state, key_of_run, gone):
            rows.append(Row(table.session_row_key(key_of_run), None))
            state.sessions.pop(key_of_run, None)
    return rows + _old_cancels(state)


def _has_runs(state: PartitionState, key: str, gone: set[bytes]) -> bool:
    """Whether anybody is left who can use the state of a run that had no session: itself, its children."""
    stored = (k for k, _ in state.rows.scan(table.run_key(key)) if k not in gone)
    return any(routing_key(k[1:].decode()) == key for k in stored) or any(r.key == key for r in state.runs.values())


def _old_cancels(state: PartitionState) -> list[Row]:
    """Some of the cancels for runs that never came, a few at a time."""
    rows: list[Row] = []
    after, state.swept = state.swept, None
    for n, (key, value) in enumerate(state.rows.scan(table.EARLY_CANCEL, after)):
        if n == _SWEPT:
            break
        state.swept = key
        run_id = key[1:].decode()
        if run_id not in state.early_cancels and decode(value).time + state.retention_ms < state.now:
            rows.append(Row(key, None))
    return rows


def derived(row: Row, old: Callable[[bytes], bytes | None]) -> Iterable[Row]:
    """The derived rows that go with a primary row; `old` looks up what it replaces."""
    family = row.key[:1]
    if family == table.HISTORY:
        return ()
    if family == table.RUN:
        return _of_run(row, old) if row.value is not None else ()
    if family == table.PENDING:
        return _of_pending(row, old)
    if family == table.SESSION:
        return _of_session(row)
    return ()


def _of_run(row: Row, old: Callable[[bytes], bytes | None]) -> list[Row]:
    assert row.value is not None
    if row.of is None:
        first = head(row.value, 3)
        status, created_at, finished_at = first["status"], first["created_at"], first["finished_at"]
    else:
        status, created_at, finished_at = row.of.status, row.of.created_at, row.of.finished_at
    run_id = row.key[1:]
    rows = [Row(table.created_key(created_at, run_id), b"")]
    if finished_at is not None:
        rows.append(Row(table.finished_key(finished_at, run_id), b""))
    paused = table.PAUSED + run_id
    if status == "paused":
        rows.append(Row(paused, b""))
    elif old(paused) is not None:
        rows.append(Row(paused, None))
    return rows


def _of_pending(row: Row, old: Callable[[bytes], bytes | None]) -> tuple[Row, ...]:
    """A question to a person has its place in the index of questions."""
    of, asked_at = row.of, None
    if of is None:
        data = row.value if row.value is not None else old(row.key)
        first = head(data, 2) if data is not None else None
        if first is not None and first["ask"] == "user":
            asked_at = first["asked_at"]
    elif isinstance(of, PendingRow):
        asked_at = of.asked_at if of.ask == "user" else None
    elif isinstance(of.ask, UserAsk):
        asked_at = of.asked_at
    if asked_at is None:
        return ()
    return (Row(table.asked_key(asked_at, row.key[1:]), b"" if row.value is not None else None),)


def _of_session(row: Row) -> tuple[Row]:
    busy = False
    if row.value is not None:
        session: SessionRow = row.of or decode(row.value)
        busy = session.lock_run is not None or bool(session.queue)
    return (Row(table.BUSY_SESSION + row.key[1:], b"" if busy else None),)


def forget_clean(state: PartitionState, *, keep: int) -> int:
    """Let what the table holds leave memory: every finished run, and the live ones that have been still the longest
    beyond `keep`. Call right after a checkpoint's rows are in the local table. Returns how many were let go."""
    gone = 0
    excess = len(state.runs) - keep
    for run_id, run in list(state.runs.items()):
        if not run.ended and (excess <= 0 or run_id in state.foreseen):
            continue
        session = state.sessions.get(run.key)
        if run_id in state.dirty_runs or run.executing or (session is not None and session.turn is not None):
            continue
        drop_activation(run)
        del state.runs[run_id]
        excess -= 1
        gone += 1
    for key, session in list(state.sessions.items()):
        if not session.busy and not session.queue and key not in state.dirty_sessions:
            del state.sessions[key]
    for user_id in [u for u in state.users if u not in state.dirty_users]:
        del state.users[user_id]
    for run_id in [r for r in state.early_cancels if r not in state.dirty_cancels]:
        del state.early_cancels[run_id]
    return gone
