"""The records of the journal: commands to runs, and what came of their steps.

Frozen, typed, without behaviour. `avro.py` is the one place that turns them into bytes and back; the field names are
those of `schemas/<Kind>.<version>.avsc`. Times are milliseconds since the Unix epoch, payloads are JSON bytes.

Owners' records carry `claim`: the journal offset of the OwnerClaimed they were written under. Records written by
gateways and worker pools carry none and are judged by their IDs and attempts alone.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from agnt5.replay.making import maker

# ------------------------------------------------------------------ ownership


class OwnerClaimed(NamedTuple):
    """A processor took the partition. Its own offset is its claim number; owners' records with a smaller claim that
    stand after it are ignored."""

    owner: str
    code_version: str


# ------------------------------------------------------------------ commands


class RunRequested(NamedTuple):
    """Start a run, once: a second request for a known run ID starts nothing."""

    run_id: str
    command_id: str
    workflow: str
    input: bytes
    session_id: str | None
    user_id: str | None
    trigger: bytes
    parent_run_id: str | None
    parent_path: str | None
    metadata: dict[str, str]
    envelope: bytes | None


class UserResponded(NamedTuple):
    """A person answered a question. `response` null skips; `entry` may be left out while one question is open."""

    run_id: str
    command_id: str
    entry: str | None
    response: bytes
    responder: str | None


class SignalSent(NamedTuple):
    run_id: str
    command_id: str
    name: str
    payload: bytes


class CancelRequested(NamedTuple):
    """Raise CancelledError in the run; with `force`, end it without asking its code."""

    run_id: str
    command_id: str
    force: bool


class RetryRequested(NamedTuple):
    """Let a failed or paused run go on from what failed."""

    run_id: str
    command_id: str


class UserStateAsked(NamedTuple):
    """One operation on a user's state, sent to the user's partition; `run_id` and `path` are where the reply goes."""

    user_id: str
    run_id: str
    path: str
    op: str
    changes: bytes
    version: int | None


class ScheduleBegun(NamedTuple):
    """A schedule was seen for the first time: its due times count from this record's time on. `schedule` is its
    routing key."""

    schedule: str
    workflow: str
    spec: str
    claim: int


# ------------------------------------------------------------------ results


class StepSucceeded(NamedTuple):
    run_id: str
    path: str
    attempt: int
    result: bytes
    claim: int | None


make_step_succeeded = maker(StepSucceeded)


class StepFailed(NamedTuple):
    """One attempt failed. `retry_at` is when the next one starts; None: this was the last."""

    run_id: str
    path: str
    attempt: int
    error_type: str
    message: str
    traceback: str
    retry_at: int | None
    claim: int | None


class StepRestarted(NamedTuple):
    """A step found pending at an unclean take-over is about to be executed again."""

    run_id: str
    path: str
    claim: int


class StepIsolated(NamedTuple):
    """The step is about to be executed with nothing beside it. `begin` False, which is read but never written: it came
    out alive."""

    run_id: str
    path: str
    begin: bool
    claim: int


class StepDispatched(NamedTuple):
    """The step's command is durable in its queue's topic: it is not to be given to the pool again."""

    run_id: str
    path: str
    attempt: int
    claim: int


class StepBeat(NamedTuple):
    """A pool worker speaks of a step. `state`: working; alone (it begins with nothing beside it in that worker); again
    (another worker may have died with it: if it is still wanted, send it anew); left (the worker lets go of it: the
    same); unknown (the worker has no such function)."""

    run_id: str
    path: str
    attempt: int
    worker: str
    state: str


class CallInterrupted(NamedTuple):
    """The run's cancel or time-out does not wait for its in-place calls. `returned`: how many have since its code
    began. How far they had come is not for the log to know, so it is told."""

    run_id: str
    returned: int
    claim: int


class TimerFired(NamedTuple):
    """The log's clock is believed to have reached the due time of the entry (`timeout`: of the run itself)."""

    run_id: str
    path: str
    claim: int


class StateWritten(NamedTuple):
    """A run's session write. `base` is the offset of the session's last effective write when it was asked for; if
    that has changed, this record is void and the write is asked again."""

    run_id: str
    path: str
    changes: bytes
    base: int
    claim: int


class Replied(NamedTuple):
    """What a run asked of another partition (a user's state, a publication) was done: resolve `path` with `value`."""

    run_id: str
    path: str
    value: bytes


class ChildFinished(NamedTuple):
    """Tells the parent at `path` how its child ended. `attempt`: the last one of the parent's that asked for it."""

    run_id: str
    path: str
    attempt: int
    child_run_id: str
    status: str
    output: bytes | None
    error_type: str | None
    message: str | None
    traceback: str | None


class RunRetried(NamedTuple):
    """The run failed and goes on again from what failed (`@workflow(retries=)`)."""

    run_id: str
    attempt: int
    error_type: str
    message: str
    traceback: str
    step: str | None
    claim: int


class RunFinished(NamedTuple):
    """The end of a run, in this attempt of it: completed, failed, cancelled or timeout."""

    run_id: str
    attempt: int
    status: str
    output: bytes | None
    error_type: str | None
    message: str | None
    traceback: str | None
    step: str | None
    claim: int


class RunParked(NamedTuple):
    """The owner cannot go on with the run: `poison` (it keeps killing its owner), `unknown_function`."""

    run_id: str
    path: str
    reason: str
    detail: str
    claim: int


class Delivered(NamedTuple):
    """These outputs of the partition's runs are durable where they were sent."""

    ids: list[str]
    claim: int


Command: TypeAlias = (
    RunRequested | UserResponded | SignalSent | CancelRequested | RetryRequested | UserStateAsked | ScheduleBegun
)
Result: TypeAlias = (
    StepSucceeded
    | StepFailed
    | StepRestarted
    | StepIsolated
    | StepDispatched
    | StepBeat
    | CallInterrupted
    | TimerFired
    | StateWritten
    | Replied
    | ChildFinished
    | RunRetried
    | RunFinished
    | RunParked
    | Delivered
)
JournalRecord: TypeAlias = OwnerClaimed | Command | Result
RunRecord: TypeAlias = (
    RunRequested | UserResponded | SignalSent | CancelRequested | RetryRequested
    | StepSucceeded | StepFailed | StepRestarted | StepIsolated | StepDispatched | StepBeat
    | CallInterrupted | TimerFired | StateWritten | Replied | ChildFinished | RunRetried | RunFinished | RunParked
)  # fmt: skip
"""Of one run: those with a `run_id`, by which they are routed."""


# ------------------------------------------------------------------ records of the steps.<queue> topics


class StepCommand(NamedTuple):
    """Execute one attempt of a step. `alone`: with nothing beside it, since workers have died of it or near it."""

    run_id: str
    run_attempt: int
    path: str
    attempt: int
    name: str
    function: str
    input: bytes
    options: bytes | None
    session_id: str
    user_id: str
    workflow: str
    metadata: dict[str, str]
    alone: bool


class StepWithdrawn(NamedTuple):
    """Nobody waits for the commands of this step that stand before this one: cancel what runs, drop what waits."""

    run_id: str
    path: str


# ------------------------------------------------------------------ public record of the outcomes topic


class RunOutcome(NamedTuple):
    """What the `outcomes` topic says of a finished run."""

    run_id: str
    workflow: str
    status: str
    input: bytes
    output: bytes | None
    error_type: str | None
    message: str | None
    session_id: str
    user_id: str
    created_at: int
    finished_at: int
