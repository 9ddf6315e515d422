"""Pools against a real broker: steps run there, are taken over from the dead, and are left alone while they live."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from agnt5 import registry
from agnt5_engine.ports import StartRequest
from agnt5_engine.processor import Processor
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import CancelRequested
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.transport.base import Message, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from tests.queues.workers import FLOWS, Notes, WorkerProcess
from tests.triggers import engine as harness
from tests.triggers.engine import until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def only_the_flows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(harness, "PATIENCE", 90.0)
    before = registry.snapshot()
    registry.restore(_FLOWS)
    yield
    registry.restore(before)


def _load() -> registry.Snapshot:
    """A module is loaded once in a process."""
    before = registry.snapshot()
    registry.clear()
    registry.load(str(FLOWS))
    loaded = registry.snapshot()
    registry.restore(before)
    return loaded


_FLOWS = _load()


class Pool:
    """An engine of its own names on the broker, and workers for it."""

    def __init__(self, kafka: str, folder: Path) -> None:
        name = uuid.uuid4().hex[:8]
        self.folder = folder
        self.notes = Notes(folder / "notes")
        self.settings = {
            "broker": f"kafka://{kafka}", "topic_prefix": f"t{name}.", "group": f"g{name}", "partitions": 2,
            "replication": 1, "heartbeat_timeout": 3, "checkpoint_interval": 0.2, "data_dir": str(folder / "data"),
        }  # fmt: skip
        self.workers: list[WorkerProcess] = []

    def worker(self, **more: Any) -> WorkerProcess:
        made = WorkerProcess(self.folder, self.settings | more)
        self.workers.append(made)
        return made

    @asynccontextmanager
    async def processor(self) -> AsyncIterator[Processor]:
        settings = {k: v for k, v in self.settings.items() if k != "data_dir"}
        async with harness.processor(self.folder / "data", **settings) as engine:
            yield engine

    async def start(self, engine: Processor, workflow: str, name: str, **more: Any) -> str:
        given = to_json({"file": self.notes.file, "name": name, **more})
        trigger = {"kind": "http"}
        return (await engine.start(StartRequest(workflow=workflow, input=given, trigger=trigger))).run_id


@pytest.fixture
def pool(kafka: str, tmp_path: Path) -> Iterator[Pool]:
    made = Pool(kafka, tmp_path)
    yield made
    for worker in made.workers:
        if worker.alive:
            worker.kill()


def begun(pool: Pool, name: str, times: int = 1) -> Callable[[], bool]:
    return lambda: pool.notes.count("begin")[name] >= times


async def test_steps_of_a_queue_run_in_its_workers_with_their_retries(pool: Pool) -> None:
    worker = pool.worker()
    async with pool.processor() as engine:
        ids = [await pool.start(engine, "one", f"s{n}") for n in range(50)]
        flaky = await pool.start(engine, "retried", "flaky")

        outputs = {(await engine.finished(run_id)).output for run_id in ids}
        assert (await engine.finished(flaky)).output == 2
    assert outputs == {worker.pid}
    assert set(pool.notes.count("begin").values()) == {1, 3}


async def test_a_killed_workers_steps_run_elsewhere_and_finished_ones_are_not_repeated(pool: Pool) -> None:
    first = pool.worker()
    async with pool.processor() as engine:
        done = await pool.start(engine, "one", "done")
        await engine.finished(done)
        young = await pool.start(engine, "one", "young", seconds=3)
        await until(begun(pool, "young"))
        first.kill()
        second = pool.worker()
        assert (await engine.finished(young)).output == second.pid
        assert pool.notes.where("young") == [first.pid, second.pid]

        # One so long that its offset has been committed: nothing but its silence tells.
        old = await pool.start(engine, "one", "old", seconds=8)
        await until(begun(pool, "old"))
        await asyncio.sleep(3)
        second.kill()
        third = pool.worker()
        await until(begun(pool, "old", 2))
        assert pool.notes.where("old") == [second.pid, third.pid]
        assert (await engine.finished(old)).output == third.pid
    assert pool.notes.count("begin")["done"] == 1


async def test_a_slow_worker_that_shows_life_is_left_alone_whoever_comes_or_goes(pool: Pool) -> None:
    first = pool.worker()
    async with pool.processor() as engine:
        slow = await pool.start(engine, "one", "slow", seconds=14)
        await until(begun(pool, "slow"))
        second = pool.worker()  # its partition may move there
        await asyncio.sleep(4)
        quick = [await pool.start(engine, "one", f"q{n}") for n in range(20)]
        for run_id in quick:
            await engine.finished(run_id)
        second.stop()

        assert (await engine.finished(slow)).output == first.pid
    assert set(pool.notes.count("begin").values()) == {1}


async def test_a_new_owner_does_not_send_what_a_pool_has(pool: Pool) -> None:
    async with pool.processor() as engine:
        ids = [await pool.start(engine, "one", f"s{n}") for n in range(10)]
        topic = f"{pool.settings['topic_prefix']}steps.pool"
        await until(lambda: _records(engine, topic, 10))
    async with pool.processor() as engine:
        pool.worker()
        for run_id in ids:
            await engine.finished(run_id)
        assert await _records(engine, topic, 11) is False
    assert set(pool.notes.count("begin").values()) == {1}


async def test_cancelling_a_run_reaches_the_worker(pool: Pool) -> None:
    pool.worker(queue_pool_concurrency=1)
    async with pool.processor() as engine:
        running = await pool.start(engine, "one", "running", seconds=60)
        await until(begun(pool, "running"))
        waiting = await pool.start(engine, "one", "waiting", seconds=60)
        last = await pool.start(engine, "one", "last")

        await engine.cancel(waiting, force=False)
        await engine.cancel(running, force=False)

        assert (await engine.finished(running)).status == "cancelled"
        assert (await engine.finished(last)).status == "completed"
        await until(lambda: pool.notes.count("cancel")["running"] == 1)
    assert "waiting" not in pool.notes.count("begin")


async def test_a_cancel_that_came_while_nobody_had_the_partition_reaches_the_worker(pool: Pool) -> None:
    pool.worker()
    async with pool.processor() as engine:
        run_id = await pool.start(engine, "one", "running", seconds=600)
        await until(begun(pool, "running"))
    log = KafkaLog({"bootstrap_servers": pool.settings["broker"].removeprefix("kafka://")}, patience=30)
    try:
        key = routing_key(run_id)
        journal = TopicPartition(f"{pool.settings['topic_prefix']}journal", partition_of(key, 2))
        cancel = CancelRequested(run_id, "by-somebody", False)
        await log.append(journal, [Message(key.encode(), encode(cancel))])
    finally:
        await log.close()
    async with pool.processor() as engine:
        assert (await engine.finished(run_id)).status == "cancelled"
        await until(lambda: pool.notes.count("cancel")["running"] == 1)


async def test_a_worker_that_is_asked_to_stop_finishes_its_steps_first(pool: Pool) -> None:
    first = pool.worker()
    async with pool.processor() as engine:
        run_id = await pool.start(engine, "one", "slow", seconds=3)
        await until(begun(pool, "slow"))
        await asyncio.to_thread(first.stop)
        assert (await engine.finished(run_id)).output == first.pid
        second = pool.worker()
        after = await pool.start(engine, "one", "after")
        assert (await engine.finished(after)).output == second.pid
    assert set(pool.notes.count("begin").values()) == {1}


async def test_a_step_that_kills_its_workers_parks_its_run_and_nobody_elses(pool: Pool) -> None:
    async with pool.processor() as engine:
        poison = await pool.start(engine, "poisonous", "poison")
        innocent = await pool.start(engine, "one", "innocent", seconds=5)
        for _ in range(12):
            worker = pool.worker()
            await until(lambda worker=worker: not worker.alive or _paused(engine, poison))  # type: ignore[misc]
            if await _paused(engine, poison):
                break
        pool.worker()  # the last one may have begun it once more
        run = await engine.run(poison)
        assert run.pause is not None
        assert run.pause.reason == "poison"
        assert "deadly" in run.pause.detail
        assert (await engine.finished(innocent)).status == "completed"
    assert pool.notes.count("begin")["poison"] <= 6


async def _paused(engine: Processor, run_id: str) -> bool:
    return (await engine.run(run_id)).status == "paused"


async def _records(engine: Processor, topic: str, at_least: int) -> bool:
    from agnt5_engine.transport.base import TopicPartition

    ends = [await engine.log.bounds(TopicPartition(topic, p)) for p in range(2)]
    return sum(end for _, end in ends) >= at_least
