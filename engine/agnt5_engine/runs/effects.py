"""What applying a record makes the shell do. Each follows from the log alone; doing one twice does no harm.

Nothing is handed over that recovery could not find again in the rows: an effect is a hint that something pending is
due.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from agnt5.replay.making import maker
from agnt5.replay.protocol import InPlaceCall
from agnt5_engine.records.journal import JournalRecord
from agnt5_engine.runs.model import Pending


class Execute(NamedTuple):
    """Run the pending step at `path`, now or at its `retry_at`."""

    run_id: str
    path: str


make_execute = maker(Execute)


class Abandon(NamedTuple):
    """Nobody waits for the step at `path` any more: cancel it if it is running, here or in a pool."""

    run_id: str
    path: str
    pending: Pending


class StepAlive(NamedTuple):
    """A pool worker has the step in hand: it must not be silent for too long."""

    run_id: str
    path: str


class SetTimer(NamedTuple):
    """Append TimerFired for `path` once the clock reaches `due` (ms)."""

    due: int
    run_id: str
    path: str


class DropTimer(NamedTuple):
    """Nobody waits for that timer any more."""

    due: int
    run_id: str
    path: str


class Append(NamedTuple):
    """Write this record of the owner's to its own journal partition."""

    run_id: str
    record: JournalRecord


class Send(NamedTuple):
    """Deliver the outbox row of this ID and append Delivered."""

    id: str


class Call(NamedTuple):
    """Run an in-place call of the run on the real loop, then `runs.apply.finish_call`."""

    key: str
    run_id: str
    call: InPlaceCall


class InterruptCall(NamedTuple):
    """Cancel the in-place call that this routing key is in."""

    key: str


class Verdict(NamedTuple):
    """What became of a command. `reason` None: accepted; else a word of `ports.Refused`, or `existing`, `unknown`."""

    command_id: str
    run_id: str
    reason: str | None
    message: str
    detail: Any


class Moved(NamedTuple):
    """The public history of a watched run grew: it went on, ended, or was paused."""

    run_id: str


class Rescheduled(NamedTuple):
    """The schedule of this key has moved on: look when it is due next. `due`: the due time that was decided on."""

    key: str
    due: int | None


class Superseded(NamedTuple):
    """A later owner claimed the partition; this one must stop."""

    claim: int


Effect: TypeAlias = (
    Execute
    | Abandon
    | StepAlive
    | SetTimer
    | DropTimer
    | Append
    | Send
    | Call
    | InterruptCall
    | Verdict
    | Moved
    | Rescheduled
    | Superseded
)
