"""The shapes that cross HTTP: what the API answers, the client returns and `agnt5 ... --json` prints.

Every time is an aware UTC datetime and is written as RFC 3339 with a trailing Z. `at(ms)` makes one of the log's
milliseconds.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import from_json

RunStatus: TypeAlias = Literal[
    "pending", "running", "awaiting_user_input", "paused", "completed", "failed", "cancelled", "timeout"
]
"""`running` also covers sleeping and waiting for a signal (see `Run.waiting_on`); `paused` is parked (`Run.pause`)."""

InputType: TypeAlias = Literal["text", "approval", "select", "multiselect"]

EventType: TypeAlias = Literal[
    "run.started",
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.timeout",
    "run.paused",
    "run.resumed",
    "workflow.step.started",
    "workflow.step.completed",
    "workflow.step.failed",
    "approval.requested",
    "approval.resolved",
    "progress.update",
    "log",
]

ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled", "timeout"})
"""The statuses no run leaves by itself (a failed one goes on again only on retry)."""


def at(ms: int) -> datetime:
    """The UTC time of `ms` milliseconds since the Unix epoch, exact to the millisecond."""
    seconds, rest = divmod(ms, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def shown(data: bytes | None) -> Any:
    """Bytes of unknown make, for a reader: the value when they are JSON, the text when they are UTF-8, else
    `{"base64": "..."}`."""
    if data is None:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def shown_key(data: bytes | None) -> str | None:
    """A record's key, for a reader: its text, or `base64:` and its bytes where they are not UTF-8."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


Time = Annotated[AwareDatetime, AfterValidator(_utc)]
Item = TypeVar("Item")


class Shape(BaseModel):
    """Base of all shapes. A field that a newer server adds is ignored by an older client."""

    model_config = ConfigDict(extra="ignore")


class Trigger(Shape):
    """What started a run. Further fields depend on the kind: `topic, partition, offset` (event), `source,
    delivery_id` (webhook), `due` (cron), `run_id` (child)."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["http", "event", "webhook", "cron", "child"]


class ErrorDetail(Shape):
    """Why a run or a step failed."""

    type: str = Field(description="Name of the original exception's class, e.g. `ValueError`.")
    message: str
    traceback: str = ""
    step: str | None = Field(None, description="The step or child workflow it came from, if it came from one.")


class Pause(Shape):
    """Why a run is parked."""

    reason: str = Field(description="A stable word: `non_determinism`, `poison` ...")
    detail: str = ""


class Waiting(Shape):
    """One thing a run is blocked on."""

    kind: str = Field(description="step, sleep, user, signal, child ...")
    entry: str = Field(description="The entry path inside the run.")
    name: str = ""
    until: Time | None = Field(None, description="When the wait ends by itself; null: never.")


class Run(Shape):
    """One run of a workflow."""

    run_id: str
    workflow: str
    status: RunStatus
    input: Any = None
    output: Any = None
    error: ErrorDetail | None = None
    pause: Pause | None = None
    session_id: str | None = None
    user_id: str | None = None
    created_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    trigger: Trigger
    waiting_on: list[Waiting] = Field(default_factory=list)
    parent_run_id: str | None = None

    @property
    def ended(self) -> bool:
        """Completed, failed, cancelled or timed out."""
        return self.status in ENDED


class Event(Shape):
    """One thing that happened in a run. `progress.update` and `log` are live only: they are not in the history and
    carry the `seq` of the history event they came after, so that resuming after any seq repeats no history."""

    seq: int
    time: Time
    type: EventType
    run_id: str
    entry: str | None = None
    name: str | None = None
    attempt: int | None = None
    data: dict[str, Any] = Field(default_factory=dict, description="`result` or `error` of a step, and the like.")


class Option(Shape):
    """One choice of an approval, a select or a multiselect."""

    id: str
    label: str


class Approval(Shape):
    """A question a run has asked and nobody has answered yet."""

    run_id: str
    workflow: str
    entry: str
    question: str
    input_type: InputType
    options: list[Option] = Field(default_factory=list)
    allow_custom: bool = False
    skippable: bool = False
    asked_at: Time
    expires_at: Time | None = None


class DeadLetter(Shape):
    """A record that could not be decoded, bound or applied."""

    id: str
    reason: str = Field(description="A stable word: `undecodable`, `unbound` ...")
    detail: str = ""
    topic: str
    partition: int
    offset: int
    key: str | None = None
    value: Any = Field(None, description='JSON, or text, or `{"base64": "..."}`: decoded as far as possible.')
    time: Time


class Processor(Shape):
    """One live member of the group."""

    id: str
    url: str
    partitions: list[int]
    started_at: Time | None = None


class WorkflowInfo(Shape):
    """A workflow that can be started."""

    name: str
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    input_schema: dict[str, Any] = Field(default_factory=dict)


class Submitted(Shape):
    """A run that was accepted."""

    run_id: str
    status: RunStatus
    existing: bool = Field(False, description="True when the idempotency key had started this run before.")


class Status(Shape):
    run_id: str
    status: RunStatus


class Result(Shape):
    run_id: str
    status: RunStatus
    output: Any = None
    error: ErrorDetail | None = None


class Published(Shape):
    """Where an event landed, once durable."""

    topic: str
    partition: int
    offset: int


class StartedRuns(Shape):
    """The runs that came of a webhook or of a redriven dead letter."""

    runs: list[str]


class PartitionReadiness(Shape):
    partition: int
    caught_up: bool


class Readiness(Shape):
    ready: bool
    partitions: list[PartitionReadiness] = Field(default_factory=list)
    detail: str | None = Field(None, description="Why not, when not.")


class Listing(Shape, Generic[Item]):
    """One page. `next_cursor` goes into the next request's `cursor`; null: that was all."""

    items: list[Item]
    next_cursor: str | None = None


class RunList(Listing[Run]):
    """Runs, newest first."""


class EventList(Listing[Event]):
    """A run's history, in order."""


class ApprovalList(Listing[Approval]):
    """Open questions, oldest first."""


class DeadLetterList(Listing[DeadLetter]):
    """Dead letters, oldest first."""


class ProcessorList(Listing[Processor]):
    """The live members of the group."""


class WorkflowList(Listing[WorkflowInfo]):
    """Workflows, by name."""


class Problem(Shape):
    """RFC 9457: why a request was not done."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    instance: str | None = None
