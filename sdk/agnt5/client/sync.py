"""`Client`: the operations of `calls.py`, for code that blocks."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from agnt5.client import calls
from agnt5.client.calls import Call, Operation
from agnt5.client.following import Following
from agnt5.client.models import (
    ApprovalList,
    DeadLetter,
    DeadLetterList,
    Event,
    EventList,
    ProcessorList,
    Published,
    Run,
    RunList,
    StartedRuns,
    Status,
    WorkflowList,
)
from agnt5.client.wire import LostError, SyncWire

if TYPE_CHECKING:
    from agnt5.replay.history import History

DEFAULT_URL = "http://127.0.0.1:8080"
PATIENCE = 60.0
"""Seconds for which a client goes on asking while nobody can answer: longer than any take-over."""

Result = TypeVar("Result")
NOT_GIVEN: Any = object()


class Client:
    """Talks to any processor of a group, and survives that runs move between them.

    `url`: one processor's address, or several to try in turn. `api_key`: where the group has keys. `patience`: seconds
    for which it goes on asking while nobody can answer (503, broken connections), then UnavailableError. Every
    call may be sent more than once and still happens once."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._wire = SyncWire(url, api_key, transport)
        self._patience = patience

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, operation: Operation[Result]) -> Result:
        told: calls.Told = None
        while True:
            try:
                step = operation.send(told)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Call):
                told = self._wire.send(step)
            else:
                time.sleep(step.seconds)
                told = None

    # -- starting

    def run(
        self,
        workflow: Any,
        input: Any = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Start a workflow (its name, or the workflow itself), wait for it, and return its output.

        `input`: its parameters by name: a dict, a pydantic model or a dataclass. `timeout`: seconds to wait; the run
        goes on after them. Raises RunError, with the run as `.run`, when it did not complete (WaitTimeoutError when it
        had not ended in time), InvalidError for input that does not bind, ConflictError for a key used with other
        input."""
        return self._drive(calls.run(workflow, input, session_id, user_id, idempotency_key, timeout, self._patience))

    def submit(
        self,
        workflow: Any,
        input: Any = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start a workflow and return the run's ID once the request is durable. Raises InvalidError, ConflictError."""
        return self._drive(calls.submit(workflow, input, session_id, user_id, idempotency_key, self._patience))

    def stream(
        self,
        run_or_workflow: Any,
        input: Any = NOT_GIVEN,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        after: int = 0,
    ) -> Generator[Event, None, None]:
        """The events of a run as they happen, until it has ended: each once, over broken connections and moves.

        With a run's ID alone: its history after seq `after`, then what happens. With a workflow and its `input` (`{}`
        for none): starts it first."""
        first: Call | None = None
        if input is not NOT_GIVEN:
            first = calls.start_call("stream", run_or_workflow, input, session_id, user_id, idempotency_key)
        following = Following(first, None if first is not None else run_or_workflow, after, self._patience)
        while not following.over:
            call = following.call()
            try:
                with self._wire.listen(call) as (reply, events):
                    if following.opened(reply):
                        for data in events:
                            yield following.received(data)
                        following.ended()
            except LostError as error:
                following.lost(error.loss)
            if following.in_doubt and following.run_id is not None:
                following.found(self.get_run(following.run_id).ended)
            if following.pause:
                time.sleep(following.pause)

    # -- one run

    def get_run(self, run_id: str) -> Run:
        """The run as it stands. Raises NotFoundError."""
        return self._drive(calls.get(calls.run_path(run_id), Run, self._patience))

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """The run once it has ended, however it ended, or is paused. Raises WaitTimeoutError, NotFoundError."""
        return self._drive(calls.wait(run_id, timeout, self._patience))

    def history(self, run_id: str) -> list[Event]:
        """Everything that happened in the run, in order."""
        path = calls.run_path(run_id) + "/events"
        return (self._drive(calls.get(path, EventList, self._patience))).items

    def replay_history(self, run_id: str) -> History:
        """All that going through the run again needs, for `agnt5 replay`, a test or a bug report."""
        return self._drive(calls.replay_history(run_id, self._patience))

    def state(self, run_id: str) -> dict[str, Any]:
        """The run's state object."""
        return self._drive(calls.state(run_id, self._patience))

    def answer(self, run_id: str, response: Any, *, entry: str | None = None, user_id: str | None = None) -> Status:
        """Answer the run's pending question: text, an option's ID, a list of IDs, or None to skip. `entry`: which one,
        where several are pending. Raises InvalidError (`.problem.model_extra["options"]`) and ConflictError."""
        return self._drive(calls.answer(run_id, response, entry, user_id, self._patience))

    def signal(self, run_id: str, name: str, payload: Any = None, *, id: str | None = None) -> Status:
        """Give the run a signal. Two with the same `id` count once. Raises ConflictError when the run has ended."""
        return self._drive(calls.signal(run_id, name, payload, id, self._patience))

    def cancel(self, run_id: str, *, force: bool = False) -> Status:
        """Ask the run to stop; `force` ends one that does not react. Raises ConflictError when it has ended."""
        query = {"force": "1"} if force else {}
        return self._drive(calls.command(run_id, "cancel", query, self._patience))

    def retry(self, run_id: str) -> Status:
        """Let a parked or failed run go on from what failed. Raises ConflictError for any other."""
        return self._drive(calls.command(run_id, "retry", {}, self._patience))

    # -- lists

    def list_runs(
        self,
        status: str | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunList:
        """Runs, newest first: `.items`, and `.next_cursor` for the next page."""
        return self._drive(
            calls.get(
                "/v1/runs",
                RunList,
                self._patience,
                status=status,
                workflow=workflow,
                session_id=session_id,
                limit=limit,
                cursor=cursor,
            )
        )

    def approvals(self, limit: int | None = None, cursor: str | None = None) -> ApprovalList:
        """Open questions, oldest first."""
        return self._drive(calls.get("/v1/approvals", ApprovalList, self._patience, limit=limit, cursor=cursor))

    def workflows(self) -> WorkflowList:
        """What can be started."""
        return self._drive(calls.get("/v1/workflows", WorkflowList, self._patience))

    def processors(self) -> ProcessorList:
        """Who is there, and which partitions each owns."""
        return self._drive(calls.get("/v1/processors", ProcessorList, self._patience))

    # -- topics

    def publish(self, topic: str, value: Any, key: str | None = None, *, event_id: str | None = None) -> Published:
        """Publish an event; returns where it landed once it is durable. Triggers start one run per `event_id`."""
        return self._drive(calls.publish(topic, value, key, event_id, self._patience))

    def dead_letters(self, limit: int | None = None, cursor: str | None = None) -> DeadLetterList:
        """What could not be decoded, bound or applied, oldest first."""
        return self._drive(calls.get("/v1/dead-letters", DeadLetterList, self._patience, limit=limit, cursor=cursor))

    def dead_letter(self, letter_id: str) -> DeadLetter:
        """Raises NotFoundError."""
        return self._drive(calls.get(calls.letter_path(letter_id), DeadLetter, self._patience))

    def redrive(self, letter_id: str) -> list[str]:
        """Put the original through its way in again; the IDs of the runs that came of it. Raises NotFoundError."""
        path = calls.letter_path(letter_id) + "/redrive"
        return (self._drive(calls.post(path, StartedRuns, self._patience))).runs
