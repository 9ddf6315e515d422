"""Commands to and reads of the runs whose partitions this process owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from agnt5.client.following import ENDS
from agnt5.client.models import Approval, Event, Run, at
from agnt5.replay.history import History
from agnt5.replay.protocol import Completed, Errored, Outcome, Stopped
from agnt5_engine.partition.live import PartitionMoved, Watcher
from agnt5_engine.partition.owner import Owner
from agnt5_engine.ports import NotHere, Page, Refused, Started, StartRequest, UnknownRun
from agnt5_engine.records.journal import (
    CancelRequested,
    Command,
    RetryRequested,
    RunRequested,
    SignalSent,
    UserResponded,
)
from agnt5_engine.records.routing import (
    digest,
    is_run_id,
    new_command_id,
    new_id,
    partition_of,
    routing_key,
    run_id_for,
)
from agnt5_engine.runs import model
from agnt5_engine.runs.activate import derived_state, run_info
from agnt5_engine.runs.apply import revive
from agnt5_engine.runs.commands import failure
from agnt5_engine.runs.effects import Verdict
from agnt5_engine.runs.history import public_events, replayed
from agnt5_engine.serving.lists import newest_first, questions
from agnt5_engine.serving.views import approval_view, event_view, run_view, status_of
from agnt5_engine.transport.base import TooLargeError

T = TypeVar("T")
U = TypeVar("U")

TURN_SECONDS = 0.005
"""How long a list may keep the loop to itself."""


def request_run_id(request: StartRequest) -> str:
    """The run ID of a request: given, derived from what deduplicates it, or drawn."""
    if request.run_id is not None:
        return request.run_id
    if request.dedupe is None:
        unique = new_id()
    else:
        unique = digest(str(request.trigger.get("kind", "http")), request.workflow, request.dedupe)
    return run_id_for(request.session_id, unique)


def run_requested(request: StartRequest, command_id: str) -> RunRequested:
    """The journal record of a request."""
    return RunRequested(
        run_id=request_run_id(request),
        command_id=command_id,
        workflow=request.workflow,
        input=request.input,
        session_id=request.session_id,
        user_id=request.user_id,
        trigger=to_json(dict(request.trigger)),
        parent_run_id=None,
        parent_path=None,
        metadata=dict(request.metadata or {}),
        envelope=request.envelope,
    )


class LocalRuns:
    """`owner_of(partition)` raises NotHere for partitions that are owned elsewhere."""

    def __init__(self, partitions: int, owner_of: Callable[[int], Owner], owners: Callable[[], list[Owner]]) -> None:
        self._partitions = partitions
        self._owner_of = owner_of
        self._owners = owners

    def owner(self, run_id: str) -> Owner:
        if not is_run_id(run_id):
            raise UnknownRun(run_id)
        return self._owner_of(partition_of(routing_key(run_id), self._partitions))

    # ------------------------------------------------------------------ commands

    async def start(self, request: StartRequest) -> Started:
        record = run_requested(request, new_command_id())
        verdict = await self._command(record.run_id, record.command_id, record)
        if verdict.reason == "existing":
            if request.strict and not verdict.detail["same"]:
                raise Refused(
                    "conflict",
                    f"this idempotency key started run {record.run_id} with other input; use a new key for new input",
                    {"run_id": record.run_id},
                )
            return Started(record.run_id, self._status(record.run_id), True)
        return Started(record.run_id, self._status(record.run_id), False)

    def _status(self, run_id: str) -> str:
        try:
            run = self.owner(run_id).state.peek(run_id)
        except NotHere:  # moved since; the start must not be passed on a second time
            return "pending"
        return status_of(run) if run is not None else "pending"

    async def answer(self, run_id: str, response: Any, entry: str | None, user_id: str | None) -> None:
        command = new_command_id()
        record = UserResponded(run_id, command, entry, self._payload(run_id, response), user_id)
        self._accepted(await self._command(run_id, command, record))

    async def signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> None:
        command = f"signal:{signal_id}" if signal_id is not None else new_command_id()
        record = SignalSent(run_id, command, name, self._payload(run_id, payload))
        self._accepted(await self._command(run_id, command, record))

    async def cancel(self, run_id: str, *, force: bool) -> None:
        self._known(run_id)
        command = new_command_id()
        self._accepted(await self._command(run_id, command, CancelRequested(run_id, command, force)))

    async def retry(self, run_id: str, key: str | None = None) -> None:
        command = f"retry:{key}" if key is not None else new_command_id()
        self._accepted(await self._command(run_id, command, RetryRequested(run_id, command)))

    def _payload(self, run_id: str, value: Any) -> bytes:
        """The value as the journal holds it. JSON may be longer than it came: 1e9 is written 1000000000.0."""
        data, limit = to_json(value), self.owner(run_id).state.code.max_payload
        if len(data) > limit:
            raise TooLargeError(
                f"the payload has {len(data):,} bytes; at most {limit:,} are taken (AGNT5_MAX_PAYLOAD_BYTES)"
            )
        return data

    async def _command(self, run_id: str, command_id: str, record: Command) -> Verdict:
        """Append the command and wait for the verdict that applying it gives."""
        owner = self.owner(run_id)
        expected = owner.live.expect(run_id, command_id)
        owner.append(run_id, record)
        try:
            return await expected
        except PartitionMoved:
            raise NotHere(owner.partition, None, unsure=True) from None
        finally:
            owner.live.forget(run_id, command_id)

    @staticmethod
    def _accepted(verdict: Verdict) -> None:
        if verdict.reason == "unknown":
            raise UnknownRun(verdict.run_id)
        if verdict.reason is not None:
            raise Refused(verdict.reason, verdict.message, verdict.detail)

    # ------------------------------------------------------------------ reads

    def _known(self, run_id: str) -> model.Run:
        state = self.owner(run_id).state
        run = state.peek(run_id)
        if run is None or (run.finished_at is not None and run.finished_at + state.retention_ms < state.now):
            raise UnknownRun(run_id)
        return run

    async def run(self, run_id: str) -> Run:
        return run_view(self._known(run_id))

    async def finished(self, run_id: str) -> Run:
        owner = self.owner(run_id)
        async with _watching(owner, run_id) as watcher:
            while not (run := self._known(run_id)).ended and run.status != "paused":
                await watcher.wait()
            return run_view(run)

    async def events(self, run_id: str, after: int = 0) -> list[Event]:
        self._known(run_id)
        run = self.owner(run_id).state.run(run_id)
        if run is None:
            raise UnknownRun(run_id)
        return _events(run, after)

    async def follow(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        owner = self.owner(run_id)
        seq = after
        async with _watching(owner, run_id) as watcher:
            if not after:
                watcher.lines.extend(owner.live.said(run_id))
            while True:
                for event in await self.events(run_id, seq):
                    if event.type in ENDS:  # a reader may leave after it
                        for line in _lines(watcher, run_id, seq):
                            yield line
                    seq = event.seq
                    yield event
                for line in _lines(watcher, run_id, seq):
                    yield line
                run = self._known(run_id)
                if run.ended and seq >= run.seq:
                    return
                await watcher.wait()

    async def state(self, run_id: str) -> dict[str, Any]:
        while True:  # what was looked up is looked up again after each wait: the run may be elsewhere by then
            self._known(run_id)
            owner = self.owner(run_id)
            run = owner.state.run(run_id)
            if run is None:
                raise UnknownRun(run_id)
            if not run.begun:
                return {}
            if run.ended or run.ending or run.status == "paused":
                found = derived_state(owner.state, run)
                break
            if revive(owner.state, run):
                found = run.activation.run_state() if run.activation is not None else {}
                break
            await asyncio.sleep(0.02)
        if found is None:
            told = (
                f"run {run_id} is {run.status}: its state can only be told by code that fits and calls nothing in place"
            )
            raise Refused("state_unknown", told)
        return {key: from_json(value) for key, value in found.items()}

    async def history(self, run_id: str) -> bytes:
        """See ports.Engine.history."""
        self._known(run_id)
        run = self.owner(run_id).state.run(run_id)
        if run is None:
            raise UnknownRun(run_id)
        events = replayed(run.history) if run.begun else []
        pending = {path: key for path, p in run.pending.items() if (key := p.key) is not None}
        return History(run_info(run), run.input, events, pending, _outcome(run)).to_json()

    async def runs(
        self, *, status: str | None, workflow: str | None, session_id: str | None, limit: int, before: str | None
    ) -> Page:
        """See ports.Engine.runs."""
        position = None
        if before is not None:
            created, _, run_id = before.partition("/")
            position = (int(created), run_id)

        def wanted(run: model.Run) -> model.Run | None:
            fits = (
                (status is None or status_of(run) == status)
                and (workflow is None or run.workflow == workflow)
                and (session_id is None or run.session == session_id)
            )
            return run if fits else None

        found = await self._everywhere(lambda owner: newest_first(owner, position), wanted, limit + 1)
        found.sort(key=lambda run: (run.created_at, run.run_id), reverse=True)
        more = len(found) > limit
        found = found[:limit]
        cursor = f"{found[-1].created_at}/{found[-1].run_id}" if more else None
        return Page([run_view(run) for run in found], cursor)

    async def approvals(self) -> list[Approval]:
        found = await self._everywhere(questions, lambda question: approval_view(*question))
        return sorted(found, key=lambda a: (a.asked_at, a.run_id, a.entry))

    async def _everywhere(
        self, items: Callable[[Owner], Iterator[T]], view: Callable[[T], U | None], most: int | None = None
    ) -> list[U]:
        """`_some` of each partition's items."""
        found: list[U] = []
        owners: list[Owner] = []
        while owners != (owners := list(self._owners())):  # one that came or went meanwhile: once more
            found = [one for owner in owners for one in await _some(items(owner), view, most)]
        return found


async def _some(of: Iterator[T], view: Callable[[T], U | None], most: int | None = None) -> list[U]:
    """What `view` makes of them, without None, and no more than `most`. Others get their turns: there may be millions,
    and few that are wanted."""
    found: list[U] = []
    pause = monotonic() + TURN_SECONDS
    for one in of:
        if (seen := view(one)) is not None:
            found.append(seen)
            if len(found) == most:
                break
        if monotonic() >= pause:
            await asyncio.sleep(0)
            pause = monotonic() + TURN_SECONDS
    return found


def _outcome(run: model.Run) -> Outcome | None:
    match run.status:
        case "completed":
            return Completed(run.output or b"null")
        case "failed":
            error = failure(run.error_type, run.message, run.traceback, run.step)
            return Errored(error) if error is not None else None
        case "cancelled" | "timeout":
            return Stopped()
        case _:
            return None


def _events(run: model.Run, after: int) -> list[Event]:
    rows = run.history
    first = len(rows)
    while first and rows[first - 1].seq >= after:
        first -= 1
    first = max(first - 1, 0)
    return [event_view(run.run_id, e) for row in rows[first:] for e in public_events(row) if e.seq > after]


def _lines(watcher: Watcher, run_id: str, seq: int) -> Iterator[Event]:
    """What the run has said since the event `seq`."""
    while watcher.lines:
        line = watcher.lines.popleft()
        shape = {"seq": seq, "time": at(line.time), "type": line.type, "run_id": run_id, "data": line.data}
        yield Event.model_validate(shape)


class _watching:
    """Watch a run for as long as the block lasts."""

    def __init__(self, owner: Owner, run_id: str) -> None:
        self._owner = owner
        self._run_id = run_id

    async def __aenter__(self) -> Watcher:
        self._watcher = self._owner.live.watch(self._run_id)
        self._owner.state.watched.add(self._run_id)
        return self._watcher

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        if self._owner.live.unwatch(self._run_id, self._watcher):
            self._owner.state.watched.discard(self._run_id)
        if isinstance(error, PartitionMoved):
            raise NotHere(self._owner.partition, None) from None
