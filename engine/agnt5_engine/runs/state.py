"""The state of one partition and the moves that every applier makes on it: find, mark as changed, ask for an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agnt5.replay.protocol import Listener, StepAsk, TellChildAsk
from agnt5.workflow import Workflow
from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.journal import JournalRecord
from agnt5_engine.records.rows import EarlyCancelRow, Held, HistoryRow, OutboxRow, ScheduleRow
from agnt5_engine.runs import table
from agnt5_engine.runs.effects import DropTimer, Effect, Verdict
from agnt5_engine.runs.model import Pending, Run, Session, User
from agnt5_engine.runs.rows import next_seq, pending_of, run_of, session_of, user_of


class Code(Protocol):
    """The workflows this processor knows, and how large a payload may be."""

    @property
    def max_payload(self) -> int: ...

    def workflow(self, name: str) -> Workflow | None: ...


class PartitionState:
    """Everything that applying a record may look at or change.

    `effects` collects what the shell must do; the shell takes them away. `watched` holds the runs somebody follows.
    """

    def __init__(
        self,
        rows: table.Rows,
        code: Code,
        *,
        retention_ms: int,
        applied: int = -1,
        claim: int = -1,
        now: int = 0,
        listener: Callable[[str], Listener | None] = lambda run_id: None,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`wake` tells the shell of effects that no record has brought about."""
        self.listener = listener
        self.wake = wake
        self.rows = rows
        self.code = code
        self.applied = applied
        self.claim = claim
        self.now = now
        self.retention_ms = retention_ms
        self.effects: list[Effect] = []
        self.watched: set[str] = set()
        self.runs: dict[str, Run] = {}
        self.sessions: dict[str, Session] = {}
        self.users: dict[str, User] = {}
        self.outbox: dict[str, OutboxRow] = {}
        self.early_cancels: dict[str, EarlyCancelRow | None] = {}
        self.schedules: dict[str, ScheduleRow] = {}
        self.paused: set[str] = set()
        self.poison_offset = -1  # the record there keeps killing owners: its run is parked instead
        self.live_from: int | None = None  # what was applied when everything was asked again; None: catching up
        self.current: JournalRecord | None = None  # the record being applied
        self.swept: bytes | None = None  # up to where early cancels were looked through
        self.calls = 0  # in-place calls ever begun in this memory
        self.foreseen: set[str] = set()  # runs wanted soon: not to be let go when they are idle
        # What the next checkpoint writes.
        self.dirty_runs: dict[str, Run] = {}
        self.dirty_sessions: dict[str, Session] = {}
        self.dirty_users: dict[str, User] = {}
        self.dirty_outbox: dict[str, None] = {}
        self.dirty_cancels: dict[str, None] = {}
        self.dirty_schedules: dict[str, None] = {}
        for key, _ in rows.scan(table.PAUSED):
            self.paused.add(key[1:].decode())
        for key, _ in rows.scan(table.BUSY_SESSION):
            self.session(key[1:].decode())
        for key, value in rows.scan(table.OUTBOX):
            self.outbox[key[1:].decode()] = decode(value)
        self.stored_outbox = set(self.outbox)
        self._stored_cancels = next(iter(rows.scan(table.EARLY_CANCEL)), None) is not None

    # ------------------------------------------------------------------ find

    def run(self, run_id: str) -> Run | None:
        """The run, from memory or from its rows; None when unknown or forgotten (retention, by the log's clock)."""
        run = self.runs.get(run_id)
        if run is None:
            run = self._load(run_id)
            if run is None:
                return None
            self.runs[run_id] = run
        if run.finished_at is not None and run.finished_at + self.retention_ms < self.now:
            return None
        return run

    def _load(self, run_id: str, *, history: bool = True) -> Run | None:
        data = self.rows.get(table.run_key(run_id))
        if data is None:
            return None
        row = decode(data)
        run = run_of(row)
        if history and not run.history:
            run.history = [decode(value) for _, value in self.rows.scan(table.history_prefix(run_id))]
            run.saved = len(run.history)
            run.seq = next_seq(run.history)
        for _, value in self.rows.scan(table.pending_prefix(run_id)):
            row = decode(value)
            run.pending[row.path] = p = pending_of(row)
            run.keeps += p.kept
            run.tells += row.ask == "tell" and not p.kept
        return run

    def peek(self, run_id: str) -> Run | None:
        """The run for a reader: not kept in memory, and without its history when that has rows of its own."""
        run = self.runs.get(run_id)
        return run if run is not None else self._load(run_id, history=False)

    def session(self, key: str) -> Session:
        """The routing key's session, made when there is none yet."""
        session = self.sessions.get(key)
        if session is None:
            data = self.rows.get(table.session_row_key(key))
            session = session_of(decode(data)) if data is not None else Session(key)
            self.sessions[key] = session
        return session

    def user(self, user_id: str) -> User:
        user = self.users.get(user_id)
        if user is None:
            data = self.rows.get(table.user_row_key(user_id))
            user = user_of(decode(data)) if data is not None else User(user_id)
            self.users[user_id] = user
        return user

    def early_cancel(self, run_id: str) -> EarlyCancelRow | None:
        if run_id not in self.early_cancels:
            if not self._stored_cancels:
                return None
            data = self.rows.get(table.early_cancel_key(run_id))
            if data is None:
                return None
            self.early_cancels[run_id] = decode(data)
        row = self.early_cancels[run_id]
        return row if row is not None and row.time + self.retention_ms >= self.now else None

    def schedule(self, key: str) -> ScheduleRow | None:
        """How far the schedule of this key has come; None when it has never been seen."""
        row = self.schedules.get(key)
        if row is None and (data := self.rows.get(table.schedule_key(key))) is not None:
            row = self.schedules[key] = decode(data)
        return row

    # ------------------------------------------------------------------ change

    def changed(self, run: Run) -> None:
        """Something of the run other than its history or what it waits for has changed."""
        run.head_changed = True
        self.dirty_runs[run.run_id] = run

    def cancel_early(self, row: EarlyCancelRow) -> None:
        """Remember a cancel for a run that has not come yet."""
        self._stored_cancels = True
        self.early_cancels[row.run_id] = row
        self.dirty_cancels[row.run_id] = None

    def session_changed(self, session: Session) -> None:
        self.dirty_sessions[session.key] = session

    def schedule_changed(self, row: ScheduleRow) -> None:
        self.schedules[row.key] = row
        self.dirty_schedules[row.key] = None

    def drop_pending(self, run: Run, path: str) -> Pending | None:
        p = run.pending.pop(path, None)
        if p is None:
            return None
        if p.stored:
            run.gone[path] = p
        if not isinstance(p.ask, StepAsk) and (due := p.due) is not None and due > self.now:
            self.effects.append(DropTimer(due, run.run_id, path))
        if p.kept:
            run.keeps -= 1
        elif isinstance(p.ask, TellChildAsk):
            run.tells -= 1
        return p

    def post(self, row: OutboxRow) -> None:
        """Put an output in the outbox, to be sent until it is known to be durable."""
        self.outbox[row.id] = row
        self.dirty_outbox[row.id] = None

    def waiting(self, held: Held) -> Held:
        """`held` with the bytes of the record being applied, ready to stand in a queue."""
        if held.value:
            return held
        assert self.current is not None
        return held._replace(value=encode(self.current))

    def note(self, run: Run, row: HistoryRow, public: int) -> None:
        """Add a row to the run's history, of which `public` events are for everyone's eyes."""
        run.history.append(row)
        run.seq += public
        self.dirty_runs[run.run_id] = run

    def verdict(
        self, command_id: str, run_id: str, reason: str | None = None, message: str = "", detail: object = None
    ) -> None:
        self.effects.append(Verdict(command_id, run_id, reason, message, detail))
