"""A consumer group of real processors on a real broker, and what a test asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from agnt5_engine.records.avro import decode
from agnt5_engine.runs import table
from agnt5_engine.transport.base import Record, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from tests.engine.processes import ProcessorProcess
from tests.kafka.administrator import administrator
from tests.kafka.real_log import plain

T = TypeVar("T")

#: Seconds after which the group takes a silent member for dead, where a test does not wait for the default.
SESSION = 3

APP = """
import asyncio, os
from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import event

LOG = os.open(os.environ["AGNT5_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@function(retries=3)
async def charge(ctx: FunctionContext, order: int) -> int:
    os.write(LOG, f"charge {os.getpid()} {order}\\n".encode())
    return order * 2

@function
async def slow(ctx: FunctionContext, seconds: float) -> str:
    os.write(LOG, f"slow {os.getpid()}\\n".encode())
    await asyncio.sleep(seconds)
    return str(os.getpid())

@workflow(triggers=[event(TOPIC)])
async def orders(ctx: WorkflowContext, order: int) -> dict:
    return {"order": order, "charged": await ctx.step(charge, order)}

@workflow
async def patient(ctx: WorkflowContext, seconds: float) -> str:
    return await ctx.step(slow, seconds)

@workflow
async def waits(ctx: WorkflowContext) -> str:
    return await ctx.wait_for_signal("go")
"""


class Group:
    """Names of its own on a shared broker, and the processors started under them."""

    def __init__(self, bootstrap: str, folder: Path, **settings: Any) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.name = f"g{uuid.uuid4().hex[:8]}"
        self.topic = f"{self.name}.orders"
        self.steps_log = folder / "steps.log"
        self.module = folder / "group_app.py"
        self.module.write_text(APP.replace("TOPIC", repr(self.topic)))
        self.settings: dict[str, Any] = {
            "broker": f"kafka://{bootstrap}",
            "topic_prefix": f"{self.name}.",
            "group": self.name,
            "partitions": 2,
            "trigger_start": "earliest",
            "session_timeout": SESSION,
            "test_log": self.steps_log,
            **settings,
        }
        self.processors: list[ProcessorProcess] = []

    def processor(self, data: str = "data", **settings: Any) -> ProcessorProcess:
        """One more, not started yet. Those of one `data` directory take its slots, as on one machine."""
        made = ProcessorProcess(self.module, self.folder / data, **(self.settings | settings))
        self.processors.append(made)
        return made

    def start(self, data: str = "data", **settings: Any) -> ProcessorProcess:
        return self.processor(data, **settings).start()

    def stop(self) -> None:
        for processor in self.processors:
            processor.stop()

    def create(self, topic: str | None = None, partitions: int = 2) -> None:
        run(create(self.bootstrap, topic or self.topic, partitions))

    def produce(self, first: int, count: int, topic: str | None = None) -> None:
        run(produce(self.bootstrap, topic or self.topic, first, count))

    def wait_shared(self, *processors: ProcessorProcess) -> None:
        """Until these processors have the partitions among them, each some."""
        count = self.settings["partitions"]
        until(
            lambda: all(owned(p) for p in processors) and len(set().union(*(owned(p) for p in processors))) == count,
            lambda: [p.tail() for p in processors],
        )

    def wait_completed(self, processor: ProcessorProcess, count: int, seconds: float = 60) -> dict[int, int]:
        """Until so many orders are completed; how many completed runs each order has."""
        found: dict[int, int] = {}

        def done() -> bool:
            nonlocal found
            found = completed(processor.url)
            return len(found) >= count

        until(done, lambda: (len(found), processor.tail()), seconds)
        return found

    # -- what the log holds

    def journal(self, partition: int = 0) -> list[Record]:
        return self.records(f"{self.name}.journal", partition)

    def changelog(self, partition: int = 0) -> list[Record]:
        return self.records(f"{self.name}.state-changelog", partition)

    def rows(self, partition: int = 0) -> dict[bytes, bytes]:
        """What the changelog comes to, but for the marker."""
        rows = {r.key: r.value for r in self.changelog(partition) if r.key is not None}
        rows.pop(table.MARKER, None)
        return {key: value for key, value in rows.items() if value is not None}

    def marker(self, partition: int = 0) -> Any:
        (*_, last) = (r for r in self.changelog(partition) if r.key == table.MARKER)
        return decode(last.value or b"")

    def records(self, topic: str, partition: int = 0) -> list[Record]:
        async def read() -> list[Record]:
            async with opened(self.bootstrap) as log:
                source = TopicPartition(topic, partition)
                first, end = await log.bounds(source)
                return [r async for batch in log.read(source, first, end) for r in batch.records]

        return run(read())


@contextlib.contextmanager
def group_of(bootstrap: str, folder: Path, **settings: Any) -> Iterator[Group]:
    group = Group(bootstrap, folder, **settings)
    try:
        yield group
    finally:
        group.stop()


@contextlib.asynccontextmanager
async def opened(bootstrap: str) -> Any:
    log = KafkaLog(plain(bootstrap), patience=30)
    try:
        yield log
    finally:
        await log.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def create(bootstrap: str, topic: str, partitions: int = 2, **config: str) -> None:
    async with administrator(bootstrap) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])
    async with opened(bootstrap) as log:
        while (found := await log.topics([topic])).get(topic) is None or found[topic].partitions < partitions:
            await asyncio.sleep(0.05)


async def produce(bootstrap: str, topic: str, first: int, count: int) -> None:
    """By a plain Kafka client, as any service of a company would."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        orders = range(first, first + count)
        sent = [await producer.send(topic, json.dumps({"order": n}).encode(), key=b"%d" % n) for n in orders]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def until(true: Callable[[], Any], otherwise: Callable[[], Any] = lambda: "", seconds: float = 60) -> float:
    """Wait until something holds; returns how long that took, in seconds."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + seconds, otherwise()
        time.sleep(0.05)
    return time.monotonic() - begun


def readiness(processor: ProcessorProcess) -> dict[str, Any]:
    try:
        body: dict[str, Any] = httpx.get(f"{processor.url}/readyz", timeout=5).json()
    except httpx.HTTPError:
        return {"ready": False, "partitions": [], "detail": None}
    return body


def owned(processor: ProcessorProcess) -> set[int]:
    return {p["partition"] for p in readiness(processor)["partitions"] if p["caught_up"]}


def start_run(processor: ProcessorProcess, workflow: str, key: str | None = None, **input: Any) -> str:
    headers = {"Idempotency-Key": key} if key else {}
    url = f"{processor.url}/v1/workflows/{workflow}/submit"
    answer = httpx.post(url, json=input, headers=headers, timeout=30)
    tries = 100
    while answer.status_code == 503 and answer.json()["type"].endswith("no-owner") and (tries := tries - 1):
        time.sleep(0.1)  # as any client does: nothing was started, the partition has only just moved
        answer = httpx.post(url, json=input, headers=headers, timeout=30)
    assert answer.status_code == 202, (answer.text, processor.tail())
    return str(answer.json()["run_id"])


def get_run(processor: ProcessorProcess, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{processor.url}/v1/runs/{run_id}", timeout=30).raise_for_status().json()
    return found


def history(processor: ProcessorProcess, run_id: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{processor.url}/v1/runs/{run_id}/events", timeout=30).raise_for_status()
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def completed(url: str) -> dict[int, int]:
    """How many completed runs each order has."""
    found: dict[int, int] = {}
    cursor = None
    while True:
        params = {"limit": "200", "status": "completed", "workflow": "orders"} | ({"cursor": cursor} if cursor else {})
        try:
            page = httpx.get(f"{url}/v1/runs", params=params, timeout=60).raise_for_status().json()
        except httpx.HTTPError:
            return {}  # a partition has no owner just now
        for one in page["items"]:
            assert one["output"] == {"order": one["input"]["order"], "charged": one["input"]["order"] * 2}
            found[one["input"]["order"]] = found.get(one["input"]["order"], 0) + 1
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def lines(processor: ProcessorProcess, event: str) -> list[dict[str, Any]]:
    """The lines of a processor's log that tell of this event."""
    found = []
    for line in processor.log.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if told.get("event") == event:
                found.append(told)
    return found
