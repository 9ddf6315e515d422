"""What the gateway needs of the engine in this process. `processor.py` implements it; the command line comes by HTTP.

Every method about one run works only where its partition is owned: elsewhere it raises `NotHere`, and the gateway
forwards the request to the owner (one hop). Shapes are the pydantic models of `agnt5.client.models`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agnt5.client.models import Approval, DeadLetter, Event, Processor, Run
from agnt5_engine.transport.base import Ack, Headers


class NotHere(Exception):
    """The run's partition is owned by another processor (`url`), or by nobody just now (`url` is None). `unsure`: a
    command was on its way into the journal, and whether it got there is not known here."""

    def __init__(self, partition: int, url: str | None, *, unsure: bool = False) -> None:
        super().__init__(f"partition {partition} is owned by {url or 'nobody'}")
        self.partition = partition
        self.url = url
        self.unsure = unsure


class UnknownRun(LookupError):
    """No run of that ID is known (any more)."""


class Refused(Exception):
    """A command that its run did not accept. `reason` is a stable word:

    ended, not_pending, already_answered (detail: the winning answer), several_pending (detail: the entries),
    invalid_answer (detail: the allowed options), conflict (an idempotency key with other input), not_retriable,
    signals_waiting (too much that the run has not taken yet), state_unknown (of a run that is not in memory any more).
    A dead letter that still cannot be taken: not_subscribed, or its own reason (`triggers.dead_letters`).
    """

    def __init__(self, reason: str, message: str, detail: Any = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class StartRequest:
    """One run to start; `input` has been bound already (`agnt5.binding.check_input`)."""

    workflow: str
    input: bytes
    trigger: Mapping[str, Any]  # {"kind": "http" | "event" | "webhook" | "cron" | "child", ...}
    run_id: str | None = None  # None: drawn, or derived from `dedupe`
    session_id: str | None = None
    user_id: str | None = None
    dedupe: str | None = None  # idempotency key, event ID, delivery ID ...: the run's ID derives from it
    strict: bool = False  # with `dedupe`: other input under the same key is Refused("conflict")
    metadata: Mapping[str, str] | None = None
    envelope: bytes | None = None


@dataclass(frozen=True, slots=True)
class Started:
    run_id: str
    status: str
    existing: bool


@dataclass(frozen=True, slots=True)
class Page:
    items: Sequence[Run]
    next_cursor: str | None


class Engine(Protocol):
    """The engine as the gateway sees it."""

    # -- where things are
    def partition_of(self, run_id: str) -> int: ...
    def run_id_for(self, request: StartRequest) -> str:
        """The ID a request will get: derived from session and `dedupe`, or freshly drawn. Decides the owner."""
        ...

    def owned(self) -> frozenset[int]: ...
    async def processors(self) -> list[Processor]: ...
    def readiness(self) -> list[tuple[int, bool]]:
        """Every assigned journal partition and whether it has caught up."""
        ...

    def trouble(self) -> str | None:
        """Why this processor is not serving as it should (no assignment yet, broker away, a stopped partition), in one
        sentence for `/readyz`; None when nothing is wrong."""
        ...

    # -- starting and commanding: each returns after the command was applied by the owner
    async def start(self, request: StartRequest) -> Started: ...
    async def answer(self, run_id: str, response: Any, entry: str | None, user_id: str | None) -> None: ...
    async def signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> None: ...
    async def cancel(self, run_id: str, *, force: bool) -> None: ...
    async def retry(self, run_id: str, key: str | None = None) -> None:
        """Two with the same `key` count once."""
        ...

    # -- reading
    async def run(self, run_id: str) -> Run:
        """Raises UnknownRun, NotHere."""
        ...

    async def finished(self, run_id: str) -> Run:
        """Wait, however long, until the run has ended (or is paused); cancel to stop waiting. Raises NotHere when
        the partition moves while waiting."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[Event]: ...
    def follow(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        """History after seq `after`, then live events until the run has ended. A reader that is too slow loses
        progress and log events, never history."""
        ...

    async def state(self, run_id: str) -> dict[str, Any]: ...
    async def history(self, run_id: str) -> bytes:
        """All that replaying the run needs, as `agnt5.replay.history.History.to_json` writes it."""
        ...

    async def runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Page:
        """This process's runs, newest first by (created_at, run_id). `before` is a position "<created_ms>/<run_id>":
        only older runs; `next_cursor` is such a position or None. The gateway merges the processors' pages."""
        ...

    async def approvals(self) -> list[Approval]: ...

    # -- topics
    async def publish(self, topic: str, value: bytes, key: bytes | None, headers: Headers) -> tuple[int, Ack]:
        """Append to a user's topic: (partition, ack) once durable. Raises BadTopicError."""
        ...

    def subscribed(self) -> frozenset[str]:
        """Topics that some workflow here is triggered by."""
        ...

    async def dead_letters(self, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """The topic's letters, whoever wrote them, oldest first; only those after the letter with ID `after`."""
        ...

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        """Raises LookupError."""
        ...

    async def redrive(self, letter_id: str) -> list[str]:
        """Put the original through its way in again; the run IDs that came of it. Raises LookupError."""
        ...
