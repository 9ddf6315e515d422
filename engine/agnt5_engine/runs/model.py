"""The state of one partition in memory: runs, what they wait for, sessions, users, outputs. Plain mutable data."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from agnt5.replay.activation import Activation
from agnt5.replay.making import maker
from agnt5.replay.protocol import (
    Ask,
    EntryKey,
    Event,
    SignalAsk,
    SleepAsk,
    Turn,
    UserAsk,
    ask_digest,
    ask_key,
)
from agnt5_engine.records.journal import RunFinished, RunRetried
from agnt5_engine.records.rows import Held, HistoryRow, Parent, Signal

#: Statuses after which a run does nothing more.
ENDED = frozenset({"completed", "failed", "cancelled", "timeout"})


class EndAsk(NamedTuple):
    """The run's code has ended: RunFinished or RunRetried is to be written."""

    path: str
    record: RunFinished | RunRetried


class DeadlineAsk(NamedTuple):
    """The run's own time-out."""

    path: str
    due: int


EngineAsk: TypeAlias = Ask | EndAsk | DeadlineAsk

#: `Cause.kind` of a signal that was sent, as opposed to one that an earlier attempt took.
SIGNAL = "signal"
END = "end"
DEADLINE = "timeout"


class Pending:
    """One thing a run waits for, what it asks for, and how often it was tried."""

    __slots__ = (
        "ask",
        "asked_at",
        "attempt",
        "beat_at",
        "dispatched",
        "isolated",
        "kept",
        "restarts",
        "retry_at",
        "saved",
        "stored",
    )

    def __init__(self, ask: EngineAsk, asked_at: int) -> None:
        self.ask = ask
        self.asked_at = asked_at
        self.attempt = 0
        self.retry_at: int | None = None
        self.restarts = 0
        self.isolated = 0
        self.dispatched = False  # a pool has it
        self.kept = False  # an earlier attempt of the run has its result: it is told again, nothing is done
        self.beat_at: int | None = None  # when the pool last said so (ms)
        self.saved = False  # its row is in the table as it is now
        self.stored = False  # the table has a row of it

    @property
    def due(self) -> int | None:
        """When its timer fires (ms), if it has one."""
        match self.ask:
            case SleepAsk(due=due) | UserAsk(due=due) | SignalAsk(due=due) | DeadlineAsk(due=due):
                return due
            case _:
                return None

    @property
    def key(self) -> EntryKey | None:
        """What replay compares; None for what the code did not ask for itself."""
        return None if isinstance(self.ask, EndAsk | DeadlineAsk) else ask_key(self.ask)

    @property
    def digest(self) -> int:
        return 0 if isinstance(self.ask, EndAsk | DeadlineAsk) else ask_digest(self.ask)


class Run:
    """One run as applied so far."""

    __slots__ = (
        "activation",
        "attempt",
        "cancelled",
        "commands",
        "created_at",
        "earlier",
        "envelope",
        "error_type",
        "executing",
        "finished_at",
        "gone",
        "head_changed",
        "held",
        "history",
        "input",
        "keeps",
        "key",
        "message",
        "metadata",
        "output",
        "parents",
        "pause_detail",
        "pause_reason",
        "pending",
        "replaces",
        "run_id",
        "saved",
        "seq",
        "session_id",
        "signals",
        "started_at",
        "status",
        "step",
        "stored",
        "tells",
        "traceback",
        "trigger",
        "user_id",
        "workflow",
    )

    def __init__(self, run_id: str, key: str, workflow: str, input: bytes, created_at: int) -> None:
        self.run_id = run_id
        self.key = key
        self.workflow = workflow
        self.input = input
        self.created_at = created_at
        self.session_id: str | None = None
        self.user_id: str | None = None
        self.trigger = b"{}"
        self.metadata: dict[str, str] = {}
        self.envelope: bytes | None = None
        self.parents: list[Parent] = []
        self.status = "running"
        self.attempt = 0
        self.started_at: int | None = None
        self.finished_at: int | None = None
        self.output: bytes | None = None
        self.error_type: str | None = None
        self.message: str | None = None
        self.traceback: str | None = None
        self.step: str | None = None
        self.pause_reason: str | None = None
        self.pause_detail: str | None = None
        self.cancelled: str | None = None
        self.commands: dict[str, None] = {}  # IDs of the commands applied
        self.signals: list[Signal] = []
        self.held: list[Held] = []
        self.history: list[HistoryRow] = []
        self.seq = 0
        self.pending: dict[str, Pending] = {}
        self.tells = 0  # pending TellChildAsks
        self.keeps = 0  # pending entries whose result is kept
        # bookkeeping that is not state
        self.activation: Activation | None = None
        self.earlier: dict[str, HistoryRow] | None = None  # results of earlier attempts, by path, once looked for
        self.executing = 0  # steps running in this process
        self.head_changed = False  # the RunRow must be written again
        self.stored = False  # the table has a RunRow
        self.replaces: Run | None = None  # one of this ID that was forgotten, and may have rows
        self.saved = 0  # so many HistoryRows are in the table
        self.gone: dict[str, Pending] = {}  # what is pending no longer, and has a row

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def begun(self) -> bool:
        """Its code has been started."""
        return self.started_at is not None

    @property
    def ending(self) -> bool:
        """Its code has ended; the record that says so is on its way."""
        return END in self.pending

    @property
    def session(self) -> str:
        return self.session_id or self.run_id

    @property
    def user(self) -> str:
        return self.user_id or self.session


class Session:
    """A routing key's state, and who waits for it."""

    __slots__ = ("base", "key", "lock", "queue", "state", "turn")

    def __init__(self, key: str) -> None:
        self.key = key
        self.base = -1  # journal offset of the last effective write
        self.lock: tuple[str, str] | None = None  # run ID and path of the write in force
        self.queue: list[Held] = []
        self.state: dict[str, bytes] = {}
        self.turn: OpenTurn | None = None  # an activation in the midst of in-place calls; not in the rows

    @property
    def busy(self) -> bool:
        return self.lock is not None or self.turn is not None


class Cause(NamedTuple):
    """The record being applied to a run, as its history will tell it."""

    held: Held  # its value is filled in only when the record has to wait
    event: Event | None  # None: start, or (with `again`) go on from what failed
    kind: str = ""
    name: str = ""
    digest: int = 0
    attempt: int = 0
    by: str | None = None
    command_id: str | None = None
    again: bool = False
    kept: bool = False  # the event is the result of an earlier attempt


make_cause = maker(Cause)


class OpenTurn:
    """An activation that in-place calls have interrupted: nothing of it counts until they have returned."""

    __slots__ = ("before", "calls", "cause", "interrupting", "rebuilding", "records", "run", "time", "turn")

    def __init__(self, run: Run, cause: Cause, time: int, rebuilding: bool) -> None:
        self.run = run
        self.cause = cause
        self.time = time
        self.rebuilding = rebuilding
        self.turn = Turn()
        self.calls: dict[int, int] = {}  # in flight: the partition's token of a call -> the activation's
        self.records = 1  # so many of the queue are its own
        self.before: list[tuple[Cause, Turn, int]] = []  # what a cancel has interrupted; counts when this does
        self.interrupting = False  # CallInterrupted is on its way: whatever the calls return comes too late

    def merge(self, turn: Turn) -> None:
        """Add what another stretch of the activation asked for."""
        self.turn.asks += turn.asks
        self.turn.withdrawn += turn.withdrawn
        self.turn.reads += turn.reads
        self.turn.marks += turn.marks
        if turn.outcome is not None:  # Stopped() has no fields, and is false
            self.turn.outcome = turn.outcome


class User:
    """A user's state and the last replies."""

    __slots__ = ("replies", "state", "user_id", "version")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.version = 0
        self.state: dict[str, bytes] = {}
        self.replies: dict[str, bytes] = {}
