"""An engine in memory: real enough for the ways in, with partitions that can be moved between processors by hand.

A `Cluster` holds the runs and who owns which partition; each `FakeEngine` is one processor's view of it. Workflows are
scripts: coroutine functions of a `FakeRun`.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from agnt5.binding import parse_object
from agnt5.client.models import (
    Approval,
    DeadLetter,
    ErrorDetail,
    Event,
    Option,
    Pause,
    Processor,
    Run,
    Trigger,
    Waiting,
    WorkflowInfo,
    at,
)
from agnt5.errors import InputError
from agnt5_engine.gateway.catalog import Subscription
from agnt5_engine.ports import NotHere, Page, Refused, Started, StartRequest, UnknownRun
from agnt5_engine.transport.base import Ack, BadTopicError, Headers

Script = Callable[["FakeRun"], Awaitable[Any]]


@dataclass
class FakeWorkflow:
    """A script, the types of its inputs, and its triggers."""

    script: Script
    inputs: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    webhooks: list[tuple[str, str | None]] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)


class FakeCatalog:
    """`Catalog` over a dict of FakeWorkflow."""

    def __init__(self, workflows: dict[str, FakeWorkflow]) -> None:
        self.workflows = workflows

    def names(self) -> Sequence[str]:
        return list(self.workflows)

    def info(self, name: str) -> WorkflowInfo:
        flow = self.workflows[name]
        triggers = [{"kind": "webhook", "source": source, "event": event} for source, event in flow.webhooks]
        triggers += [{"kind": "event", "topic": topic} for topic in flow.topics]
        schema = {"type": "object", "properties": {one: TypeAdapter(t).json_schema() for one, t in flow.inputs.items()}}
        return WorkflowInfo(name=name, triggers=triggers, input_schema=schema)

    def bind(self, name: str, payload: bytes, *, strict: bool, envelope: bytes | None = None) -> bytes:
        flow = self.workflows[name]
        value = parse_object(payload, strict, name)
        faults: dict[str, str] = {}
        bound: dict[str, Any] = {}
        for one, kind in flow.inputs.items():
            if one not in value:
                if one not in flow.defaults:
                    faults[one] = "is missing"
                continue
            try:
                bound[one] = TypeAdapter(kind).validate_python(value[one])
            except ValidationError as error:
                faults[one] = error.errors()[0]["msg"]
        if strict:
            faults.update({one: "is not an input" for one in value if one not in flow.inputs})
        if faults:
            raise InputError(faults, name)
        return to_json(bound)

    def webhooks(self, source: str) -> Sequence[Subscription]:
        return [
            Subscription(name, event)
            for name, flow in self.workflows.items()
            for one, event in flow.webhooks
            if one == source
        ]


class FakeRun:
    """One run. Everything a script awaits goes through here and into the history."""

    def __init__(self, cluster: Cluster, request: StartRequest, run_id: str) -> None:
        self.cluster = cluster
        self.request = request
        self.run_id = run_id
        self.input: dict[str, Any] = from_json(request.input)
        self.status = "running"
        self.output: Any = None
        self.error: ErrorDetail | None = None
        self.pause: Pause | None = None
        self.created = cluster.now()
        self.finished: int | None = None
        self.history: list[Event] = []
        self.live: list[Event] = []
        self.changed = asyncio.Event()
        self.open: dict[str, tuple[Approval, asyncio.Future[Any]]] = {}
        self.answered: dict[str, Any] = {}
        self.signals: dict[str, asyncio.Queue[Any]] = {}
        self.seen_signals: set[str] = set()
        self.seen_retries: set[str] = set()
        self.state: dict[str, Any] = {}
        self.waiting: list[Waiting] = []
        self.paths = itertools.count()
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self.record("run.started")
        self.task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            output = await self.cluster.catalog.workflows[self.request.workflow].script(self)
            self.end("completed", output=output)
        except asyncio.CancelledError:
            self.end("cancelled")
        except Exception as error:
            self.end("failed", error=ErrorDetail(type=type(error).__name__, message=str(error)))

    def end(self, status: str, output: Any = None, error: ErrorDetail | None = None) -> None:
        self.status, self.output, self.error = status, output, error
        self.finished = self.cluster.now()
        self.waiting.clear()
        self.open.clear()
        self.record(f"run.{status}", data={"output": output} if output is not None else {})

    def park(self, reason: str) -> None:
        self.status, self.pause = "paused", Pause(reason=reason, detail="parked by the test")
        self.record("run.paused")

    def record(self, kind: str, **fields: Any) -> None:
        seq = len(self.history) + 1
        self.history.append(Event(seq=seq, time=at(self.cluster.now()), type=kind, run_id=self.run_id, **fields))
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # -- what scripts await

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        entry = str(next(self.paths))
        self.record("workflow.step.started", entry=entry, name=name, attempt=1)
        try:
            result = await work()
        except Exception as error:
            detail = {"type": type(error).__name__, "message": str(error)}
            self.record("workflow.step.failed", entry=entry, name=name, attempt=1, data={"error": detail})
            raise
        self.record("workflow.step.completed", entry=entry, name=name, attempt=1, data={"result": result})
        return result

    async def ask(self, question: str, options: Sequence[str] = ("approve", "reject"), skippable: bool = False) -> Any:
        entry = str(next(self.paths))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        approval = Approval(
            run_id=self.run_id,
            workflow=self.request.workflow,
            entry=entry,
            question=question,
            input_type="approval",
            options=[Option(id=one, label=one.title()) for one in options],
            skippable=skippable,
            asked_at=at(self.cluster.now()),
        )
        self.open[entry] = (approval, answer)
        self.status = "awaiting_user_input"
        self.record("approval.requested", entry=entry, data={"question": question})
        return await answer

    async def signal(self, name: str) -> Any:
        queue = self.signals.setdefault(name, asyncio.Queue())
        wait = Waiting(kind="signal", entry=str(next(self.paths)), name=name)
        self.waiting.append(wait)
        try:
            return await queue.get()
        finally:
            if wait in self.waiting:
                self.waiting.remove(wait)

    def progress(self, fraction: float) -> None:
        event = Event(
            seq=len(self.history),
            time=at(self.cluster.now()),
            type="progress.update",
            run_id=self.run_id,
            data={"fraction": fraction},
        )
        self.live.append(event)
        self._wake()

    def shown(self) -> Run:
        return Run(
            run_id=self.run_id,
            workflow=self.request.workflow,
            status=self.status,
            input=self.input,
            output=self.output,
            error=self.error,
            pause=self.pause,
            session_id=self.request.session_id or self.run_id,
            user_id=self.request.user_id,
            created_at=at(self.created),
            started_at=at(self.created),
            finished_at=None if self.finished is None else at(self.finished),
            trigger=Trigger(**self.request.trigger),
            waiting_on=[
                *self.waiting,
                *(Waiting(kind="user", entry=entry, name=one.question) for entry, (one, _) in self.open.items()),
            ],
        )


class Cluster:
    """Runs, and which processor owns which partition. Moving a partition wakes everyone who waits for it."""

    def __init__(self, workflows: dict[str, FakeWorkflow], partitions: int = 4) -> None:
        self.catalog = FakeCatalog(workflows)
        self.partitions = partitions
        self.runs: dict[str, FakeRun] = {}
        self.owner: dict[int, FakeEngine | None] = {}
        self.engines: list[FakeEngine] = []
        self.moved = asyncio.Event()
        self.topics: dict[str, list[tuple[bytes | None, bytes, Headers]]] = {}
        self.letters: dict[str, DeadLetter] = {}
        self._clock = 0

    def now(self) -> int:
        self._clock = max(self._clock + 1, time.time_ns() // 1_000_000)
        return self._clock

    def join(self, url: str) -> FakeEngine:
        engine = FakeEngine(self, url)
        self.engines.append(engine)
        self.share()
        return engine

    def share(self) -> None:
        """Deal the partitions out evenly."""
        for partition in range(self.partitions):
            self.owner[partition] = self.engines[partition % len(self.engines)]
        self._wake()

    def move(self, partition: int, to: FakeEngine | None) -> None:
        self.owner[partition] = to
        self._wake()

    def leave(self, engine: FakeEngine, to: FakeEngine | None) -> None:
        for partition, owner in self.owner.items():
            if owner is engine:
                self.owner[partition] = to
        if engine in self.engines:
            self.engines.remove(engine)
        self._wake()

    def _wake(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    def partition_of(self, run_id: str) -> int:
        return zlib.crc32(run_id.partition(".")[0].encode()) % self.partitions

    async def close(self) -> None:
        tasks = [run.task for run in self.runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def already_answered(run: FakeRun, entry: str) -> Refused:
    return Refused("already_answered", "That was answered already.", {"entry": entry, "response": run.answered[entry]})


class FakeEngine:
    """`Engine` over a Cluster."""

    def __init__(self, cluster: Cluster, url: str) -> None:
        self.cluster = cluster
        self.url = url
        self.starts = 0
        self.in_trouble: str | None = None

    def partition_of(self, run_id: str) -> int:
        return self.cluster.partition_of(run_id)

    def run_id_for(self, request: StartRequest) -> str:
        if request.run_id is not None:
            return request.run_id
        if request.dedupe is None:
            unique = secrets.token_hex(13)
        else:
            parts = f"{request.workflow}|{request.session_id or ''}|{request.dedupe}"
            unique = sha256(parts.encode()).hexdigest()[:26]
        if request.session_id is None:
            return unique
        return f"s{sha256(request.session_id.encode()).hexdigest()[:20]}.{unique}"

    def owned(self) -> frozenset[int]:
        return frozenset(partition for partition, owner in self.cluster.owner.items() if owner is self)

    async def processors(self) -> list[Processor]:
        return [
            Processor(
                id=engine.url,
                url=engine.url,
                partitions=sorted(engine.owned()),
                started_at=at(7) if engine is self else None,
            )
            for engine in self.cluster.engines
        ]

    def readiness(self) -> list[tuple[int, bool]]:
        return [(partition, self.in_trouble is None) for partition in self.owned()]

    def trouble(self) -> str | None:
        return self.in_trouble

    def _here(self, run_id: str) -> None:
        partition = self.cluster.partition_of(run_id)
        owner = self.cluster.owner[partition]
        if owner is not self:
            raise NotHere(partition, None if owner is None else owner.url)

    def _run(self, run_id: str) -> FakeRun:
        self._here(run_id)
        run = self.cluster.runs.get(run_id)
        if run is None:
            raise UnknownRun(run_id)
        return run

    async def start(self, request: StartRequest) -> Started:
        run_id = self.run_id_for(request)
        self._here(run_id)
        known = self.cluster.runs.get(run_id)
        if known is not None:
            if request.strict and known.request.input != request.input:
                raise Refused("conflict", "This idempotency key was used with another input.")
            return Started(run_id, known.status, existing=True)
        self.starts += 1
        run = FakeRun(self.cluster, replace(request, run_id=run_id), run_id)
        self.cluster.runs[run_id] = run
        run.begin()
        for _ in range(4):
            await asyncio.sleep(0)  # let the script come to its first wait
        return Started(run_id, "pending", existing=False)

    async def answer(self, run_id: str, response: Any, entry: str | None, user_id: str | None) -> None:
        run = self._run(run_id)
        if run.finished is not None:
            if (last := entry or next(reversed(run.answered), None)) in run.answered:
                raise Refused(
                    "already_answered", "That was answered already.", {"entry": last, "response": run.answered[last]}
                )
            raise Refused("ended", "The run has ended.")
        if entry is None:
            if len(run.open) > 1:
                raise Refused("several_pending", "Several questions are open: say which entry.", sorted(run.open))
            entry = next(iter(run.open), None)
        if entry is None or entry not in run.open:
            if entry is None and run.answered:
                entry = list(run.answered)[-1]
            if entry in run.answered:
                raise Refused(
                    "already_answered", "That was answered already.", {"entry": entry, "response": run.answered[entry]}
                )
            raise Refused("not_pending", "No question is open.")
        approval, future = run.open[entry]
        allowed = [option.id for option in approval.options]
        if response not in allowed and not (response is None and approval.skippable):
            raise Refused("invalid_answer", "That is not one of the options.", allowed)
        del run.open[entry]
        run.answered[entry] = response
        run.status = "running"
        run.record("approval.resolved", entry=entry, data={"answer": response, "user_id": user_id})
        future.set_result(response)

    async def signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> None:
        run = self._run(run_id)
        if signal_id is not None and signal_id in run.seen_signals:
            return
        if run.finished is not None:
            raise Refused("ended", "The run has ended.")
        if signal_id is not None:
            run.seen_signals.add(signal_id)
        run.signals.setdefault(name, asyncio.Queue()).put_nowait(payload)

    async def cancel(self, run_id: str, *, force: bool) -> None:
        run = self._run(run_id)
        if run.finished is not None:
            raise Refused("ended", "The run has ended.")
        assert run.task is not None
        run.task.cancel()

    async def retry(self, run_id: str, key: str | None = None) -> None:
        run = self._run(run_id)
        if key is not None and key in run.seen_retries:
            return
        if run.status not in ("failed", "paused"):
            raise Refused("not_retriable", f"The run is {run.status}; only a failed or paused one goes on again.")
        if key is not None:
            run.seen_retries.add(key)
        run.status, run.finished, run.error, run.pause = "running", None, None, None
        run.record("run.resumed")
        run.task = asyncio.get_running_loop().create_task(run._work())

    async def run(self, run_id: str) -> Run:
        return self._run(run_id).shown()

    async def _changed(self, run: FakeRun) -> None:
        waits = [asyncio.ensure_future(run.changed.wait()), asyncio.ensure_future(self.cluster.moved.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def finished(self, run_id: str) -> Run:
        while True:
            run = self._run(run_id)
            if run.finished is not None or run.status == "paused":
                return run.shown()
            await self._changed(run)

    async def events(self, run_id: str, after: int = 0) -> list[Event]:
        return self._run(run_id).history[after:]

    async def follow(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        live = len(self._run(run_id).live)
        while True:
            run = self._run(run_id)
            while after < len(run.history):
                after += 1
                yield run.history[after - 1]
                self._here(run_id)
            while live < len(run.live):
                live += 1
                yield run.live[live - 1]
            if run.finished is not None:
                return
            if after == len(run.history):
                await self._changed(run)

    async def state(self, run_id: str) -> dict[str, Any]:
        return self._run(run_id).state

    async def history(self, run_id: str) -> bytes:
        run = self._run(run_id)
        return to_json({"run": run_id, "input": run.input})

    async def runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Page:
        own = self.owned()
        position = (2**63, "") if before is None else (int(before.partition("/")[0]), before.partition("/")[2])
        found = sorted(
            (
                run
                for run in self.cluster.runs.values()
                if self.cluster.partition_of(run.run_id) in own
                and (run.created, run.run_id) < position
                and status in (None, run.status)
                and workflow in (None, run.request.workflow)
                and session_id in (None, run.request.session_id or run.run_id)
            ),
            key=lambda run: (run.created, run.run_id),
            reverse=True,
        )
        shown = [run.shown() for run in found[:limit]]
        more = len(found) > limit
        return Page(shown, f"{found[limit - 1].created}/{found[limit - 1].run_id}" if more else None)

    async def approvals(self) -> list[Approval]:
        own = self.owned()
        return [
            approval
            for run in self.cluster.runs.values()
            if self.cluster.partition_of(run.run_id) in own
            for approval, _ in run.open.values()
        ]

    async def publish(self, topic: str, value: bytes, key: bytes | None, headers: Headers) -> tuple[int, Ack]:
        if not re.fullmatch(r"[a-zA-Z0-9._-]+", topic) or topic == "no.such.topic":
            raise BadTopicError(f"There is no topic {topic!r}; create it, or set AGNT5_CREATE_TOPICS=1.")
        records = self.cluster.topics.setdefault(topic, [])
        records.append((key, value, headers))
        for name, flow in self.cluster.catalog.workflows.items():
            if topic in flow.topics:
                event_id = dict(headers).get("agnt5-event-id", str(len(records)).encode()).decode()
                bound = self.cluster.catalog.bind(name, value, strict=False)
                request = StartRequest(name, bound, {"kind": "event", "topic": topic}, dedupe=f"event:{event_id}")
                owner = self.cluster.owner[self.cluster.partition_of(self.run_id_for(request))]
                if owner is not None:
                    await owner.start(request)
        return 0, Ack(len(records) - 1, self.cluster.now())

    def subscribed(self) -> frozenset[str]:
        return frozenset(topic for flow in self.cluster.catalog.workflows.values() for topic in flow.topics)

    async def dead_letters(self, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        ids = sorted(self.cluster.letters)
        return [self.cluster.letters[one] for one in ids if after is None or one > after][:limit]

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        return self.cluster.letters[letter_id]

    async def redrive(self, letter_id: str) -> list[str]:
        letter = self.cluster.letters[letter_id]
        del self.cluster.letters[letter.id]
        return []
