"""`AsyncClient`: the operations of `calls.py`, for asyncio. Its methods are those of `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
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
from agnt5.client.sync import DEFAULT_URL, NOT_GIVEN, PATIENCE
from agnt5.client.wire import AsyncWire, LostError

if TYPE_CHECKING:
    from agnt5.replay.history import History

Result = TypeVar("Result")


class AsyncClient:
    """`Client` for asyncio: the same operations, awaited."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._wire = AsyncWire(url, api_key, transport)
        self._patience = patience

    async def close(self) -> None:
        await self._wire.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _drive(self, operation: Operation[Result]) -> Result:
        told: calls.Told = None
        while True:
            try:
                step = operation.send(told)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Call):
                told = await self._wire.send(step)
            else:
                await asyncio.sleep(step.seconds)
                told = None

    # -- starting

    async def run(
        self,
        workflow: Any,
        input: Any = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """See `Client.run`."""
        return await self._drive(
            calls.run(workflow, input, session_id, user_id, idempotency_key, timeout, self._patience)
        )

    async def submit(
        self,
        workflow: Any,
        input: Any = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """See `Client.submit`."""
        return await self._drive(calls.submit(workflow, input, session_id, user_id, idempotency_key, self._patience))

    async def stream(
        self,
        run_or_workflow: Any,
        input: Any = NOT_GIVEN,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        after: int = 0,
    ) -> AsyncGenerator[Event, None]:
        """See `Client.stream`."""
        first: Call | None = None
        if input is not NOT_GIVEN:
            first = calls.start_call("stream", run_or_workflow, input, session_id, user_id, idempotency_key)
        following = Following(first, None if first is not None else run_or_workflow, after, self._patience)
        while not following.over:
            call = following.call()
            try:
                async with self._wire.listen(call) as (reply, events):
                    if following.opened(reply):
                        async for data in events:
                            yield following.received(data)
                        following.ended()
            except LostError as error:
                following.lost(error.loss)
            if following.in_doubt and following.run_id is not None:
                following.found((await self.get_run(following.run_id)).ended)
            if following.pause:
                await asyncio.sleep(following.pause)

    # -- one run

    async def get_run(self, run_id: str) -> Run:
        """See `Client.get_run`."""
        return await self._drive(calls.get(calls.run_path(run_id), Run, self._patience))

    async def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """See `Client.wait`."""
        return await self._drive(calls.wait(run_id, timeout, self._patience))

    async def history(self, run_id: str) -> list[Event]:
        """See `Client.history`."""
        path = calls.run_path(run_id) + "/events"
        return (await self._drive(calls.get(path, EventList, self._patience))).items

    async def replay_history(self, run_id: str) -> History:
        """See `Client.replay_history`."""
        return await self._drive(calls.replay_history(run_id, self._patience))

    async def state(self, run_id: str) -> dict[str, Any]:
        """See `Client.state`."""
        return await self._drive(calls.state(run_id, self._patience))

    async def answer(
        self, run_id: str, response: Any, *, entry: str | None = None, user_id: str | None = None
    ) -> Status:
        """See `Client.answer`."""
        return await self._drive(calls.answer(run_id, response, entry, user_id, self._patience))

    async def signal(self, run_id: str, name: str, payload: Any = None, *, id: str | None = None) -> Status:
        """See `Client.signal`."""
        return await self._drive(calls.signal(run_id, name, payload, id, self._patience))

    async def cancel(self, run_id: str, *, force: bool = False) -> Status:
        """See `Client.cancel`."""
        query = {"force": "1"} if force else {}
        return await self._drive(calls.command(run_id, "cancel", query, self._patience))

    async def retry(self, run_id: str) -> Status:
        """See `Client.retry`."""
        return await self._drive(calls.command(run_id, "retry", {}, self._patience))

    # -- lists

    async def list_runs(
        self,
        status: str | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunList:
        """See `Client.list_runs`."""
        return await self._drive(
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

    async def approvals(self, limit: int | None = None, cursor: str | None = None) -> ApprovalList:
        """See `Client.approvals`."""
        return await self._drive(calls.get("/v1/approvals", ApprovalList, self._patience, limit=limit, cursor=cursor))

    async def workflows(self) -> WorkflowList:
        """See `Client.workflows`."""
        return await self._drive(calls.get("/v1/workflows", WorkflowList, self._patience))

    async def processors(self) -> ProcessorList:
        """See `Client.processors`."""
        return await self._drive(calls.get("/v1/processors", ProcessorList, self._patience))

    # -- topics

    async def publish(
        self, topic: str, value: Any, key: str | None = None, *, event_id: str | None = None
    ) -> Published:
        """See `Client.publish`."""
        return await self._drive(calls.publish(topic, value, key, event_id, self._patience))

    async def dead_letters(self, limit: int | None = None, cursor: str | None = None) -> DeadLetterList:
        """See `Client.dead_letters`."""
        return await self._drive(
            calls.get("/v1/dead-letters", DeadLetterList, self._patience, limit=limit, cursor=cursor)
        )

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        """See `Client.dead_letter`."""
        return await self._drive(calls.get(calls.letter_path(letter_id), DeadLetter, self._patience))

    async def redrive(self, letter_id: str) -> list[str]:
        """See `Client.redrive`."""
        path = calls.letter_path(letter_id) + "/redrive"
        return (await self._drive(calls.post(path, StartedRuns, self._patience))).runs
