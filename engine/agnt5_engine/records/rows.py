"""The rows of a partition's table: what a run needs to go on, without the journal.

A run is one RunRow, one PendingRow per thing it waits for, and one HistoryRow per record that moved it, so that a
checkpoint writes what changed and never a long run as a whole. While a run is small, its history stands inside its
RunRow instead (`runs/checkpoint.py` says how small), so that one that came and went between two checkpoints is one row.
"""

from __future__ import annotations

from typing import NamedTuple

from agnt5.replay.making import maker


class AskNote(NamedTuple):
    """Something a run asked for, as its history tells it."""

    path: str
    kind: str
    name: str
    data: bytes | None  # of a question: what was asked


make_ask_note = maker(AskNote)


class Read(NamedTuple):
    path: str
    value: bytes


class Mark(NamedTuple):
    name: str
    value: bool


class HistoryRow(NamedTuple):
    """One record applied to a run, with all that replaying it needs."""

    seq: int  # number of public events before this row's first
    time: int
    event: str  # start | resolved | failed | timed_out | cancelled | attempt_failed | ... (runs/history.py)
    path: str
    kind: str
    name: str
    attempt: int
    digest: int
    value: bytes | None
    error_type: str | None
    message: str | None
    traceback: str | None
    step: str | None
    by: str | None  # who answered
    reads: list[Read]
    marks: list[Mark]
    asks: list[AskNote]


make_history_row = maker(HistoryRow)


class Signal(NamedTuple):
    """A signal that nobody has waited for yet."""

    name: str
    payload: bytes


class Held(NamedTuple):
    """A journal record that waits for its turn, with where and when it stood in the log."""

    offset: int
    time: int
    value: bytes


make_held = maker(Held)


class Parent(NamedTuple):
    run_id: str
    path: str


class RunRow(NamedTuple):
    """The first fields stay the first: the table's index is made from them alone (`avro.head`)."""

    status: str
    created_at: int
    finished_at: int | None
    run_id: str
    workflow: str
    input: bytes
    session_id: str | None
    user_id: str | None
    trigger: bytes
    metadata: dict[str, str]
    envelope: bytes | None
    parents: list[Parent]
    attempt: int
    started_at: int | None
    output: bytes | None
    error_type: str | None
    message: str | None
    traceback: str | None
    step: str | None
    pause_reason: str | None
    pause_detail: str | None
    cancelled: str | None  # reason of the cancellation in force
    commands: list[str]
    signals: list[Signal]
    held: list[Held]
    history: list[HistoryRow]  # in place of HistoryRows of their own


class PendingRow(NamedTuple):
    """Something a run waits for. `ask` is the kind; the fields it does not use are empty. The first two stay first."""

    ask: str  # step | sleep | user | signal | child | write | user_state | emit | tell | end | timeout
    asked_at: int
    run_id: str
    path: str
    name: str
    function: str | None
    payload: bytes
    options: bytes | None
    due: int | None
    flags: int
    target: str | None  # child run ID; topic
    key: bytes | None
    extra: bytes | None
    attempt: int
    retry_at: int | None
    restarts: int
    isolated: int
    dispatched: bool  # its command is in its queue's topic
    beat_at: int | None  # when a pool worker last said that it has it in hand


class SessionRow(NamedTuple):
    """A routing key's session: its state, the write in force, and the records that wait behind it."""

    key: str
    base: int
    lock_run: str | None
    lock_path: str | None
    state: dict[str, bytes]
    queue: list[Held]


class UserRow(NamedTuple):
    """A user's state, and the last reply to each asker, so that an operation asked twice is done once."""

    user_id: str
    version: int
    state: dict[str, bytes]
    replies: dict[str, bytes]


class OutboxRow(NamedTuple):
    """An effect outside the partition that is not yet known to be durable."""

    id: str
    topic: str
    key: bytes | None
    value: bytes
    headers: list[Header]
    run_id: str | None  # the entry to resolve when it is delivered
    path: str | None


class Header(NamedTuple):
    name: str
    value: bytes


class EarlyCancelRow(NamedTuple):
    """A cancel that came before its run."""

    run_id: str
    time: int


class ScheduleRow(NamedTuple):
    """How far a schedule has come. Times are ms."""

    key: str
    workflow: str
    spec: str
    due: int  # the last due time that started a run, or when the schedule was first seen
    run_id: str | None  # the run it started
    backlog: int  # due times up to here were missed together, and are being made up for


class MarkerRow(NamedTuple):
    """What a checkpoint covers. `applied` is the last journal offset applied."""

    applied: int
    claim: int
    now: int
    cluster_id: str
    partitions: int
    clean: bool
    takeovers: int  # since the last ordinary checkpoint, this one included
    suspect: int | None  # the journal offset whose application was begun with this checkpoint, and not survived
    deaths: int  # how often it was not
    code_version: str
    lineage: str = ""  # drawn with a changelog's first marker: tells it from another one under the same name
