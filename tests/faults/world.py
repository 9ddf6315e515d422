"""A small company under faults: a real broker, real processors, orders all the time, and what must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from agnt5 import registry
from tests.engine.processes import ProcessorProcess, free_port
from tests.faults.company import APP, CUSTOMERS, STEPS, Clock, Notes
from tests.faults.proxy import Proxy
from tests.faults.rebuilt import judged
from tests.kafka.administrator import administrator

PARTITIONS = 4


def kafka_script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "kafka"
    spec = importlib.util.spec_from_loader("kafka_script", SourceFileLoader("kafka_script", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Report:
    """What a schedule of faults came to."""

    faults: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    completed: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    executions: int = 0
    needed: int = 0
    recoveries: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> float:
        """Executions beyond the needed ones, as a share of these."""
        return (self.executions - self.needed) / self.needed if self.needed else 0.0


class World:
    """Brings everything up, lets orders flow, heals, and checks."""

    def __init__(
        self, folder: Path, broker: Any, proxy: Proxy, *, processors: int = 2, rate: float = 60, seed: int = 1
    ) -> None:
        """`broker` must say that it is where `proxy` is (`behind`)."""
        self.folder = folder
        self.broker = broker
        self.proxy = proxy
        self.rate = rate
        self.random = random.Random(seed)
        self.report = Report()
        self.name = f"c{uuid.uuid4().hex[:8]}"
        self.topic = f"{self.name}.orders"
        self.notes = Notes(folder / "steps")
        self.module = folder / f"chaos_app_{self.name}.py"
        self.module.write_text(APP.replace("TOPIC", self.topic))
        settings = {
            "broker": f"kafka://{proxy.address}", "topic_prefix": f"{self.name}.", "group": self.name,
            "partitions": PARTITIONS, "trigger_start": "earliest", "test_log": self.notes.path, "log_level": "warning",
        }  # fmt: skip
        self.clocks = [Clock(folder / f"clock-{n}") for n in range(processors)]
        self.processors = [
            ProcessorProcess(self.module, folder / "data", **settings, test_clock=clock.path) for clock in self.clocks
        ]
        self.guest = ProcessorProcess(self.module, folder / "guest", **settings)
        self._stop = asyncio.Event()

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> World:
        await self.proxy.start(self.broker.ports["PLAINTEXT"])
        async with administrator(self.proxy.address) as admin:
            await admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])
        try:
            for p in self.processors:
                await asyncio.to_thread(p.start)
        except BaseException:
            await self._stop_processors()
            raise
        self._load = asyncio.create_task(self._orders())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._load.cancel()
        await asyncio.gather(self._load, return_exceptions=True)
        await self._stop_processors()
        await self.proxy.stop()
        self.notes.close()

    async def _stop_processors(self) -> None:
        for p in (*self.processors, self.guest):
            if p.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    p.signal(signal.SIGCONT)
        await asyncio.gather(*(asyncio.to_thread(p.stop) for p in (*self.processors, self.guest)))

    async def _orders(self) -> None:
        """A plain Kafka client that never gives an order up: what it was acked is accepted."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.proxy.address, acks="all", enable_idempotence=True, request_timeout_ms=120_000
        )
        await producer.start()
        try:
            while not self._stop.is_set():
                number = self.report.accepted
                value = {"order": number, "customer": f"customer-{number % CUSTOMERS}"}
                await producer.send_and_wait(self.topic, json.dumps(value).encode(), key=str(number).encode())
                self.report.accepted += 1
                await asyncio.sleep(1 / self.rate)
        finally:
            await producer.stop()

    async def flow(self, seconds: float) -> None:
        """Let orders come in and be worked on."""
        await asyncio.sleep(seconds)

    # ------------------------------------------------------------------ faults

    async def inject(self, fault: str) -> None:
        """One fault, and the time until everything is owned and caught up again."""
        self.report.faults[fault] += 1
        await getattr(self, fault)()
        began = time.monotonic()
        await self.whole()
        self.report.recoveries.append(time.monotonic() - began)

    async def kill(self) -> None:
        """kill -9, and a start in its place."""
        p = self.random.choice(self.processors)
        await asyncio.to_thread(p.kill)
        await asyncio.sleep(self.random.random() * 2)
        p.start(wait=False)

    async def kill_both(self) -> None:
        """kill -9 of all at once."""
        for p in self.processors:
            p.signal(signal.SIGKILL)
        for p in self.processors:
            await asyncio.to_thread(p.kill)
            p.start(wait=False)

    async def freeze(self) -> None:
        """SIGSTOP for longer than the session lasts: the partitions go to the other, then the zombie wakes."""
        p = self.random.choice(self.processors)
        p.signal(signal.SIGSTOP)
        await asyncio.sleep(self.random.uniform(5, 15))
        p.signal(signal.SIGCONT)

    async def restart(self) -> None:
        """A rolling restart."""
        for p in self.processors:
            await asyncio.to_thread(p.stop)
            await asyncio.to_thread(p.start, wait=False)
            await asyncio.sleep(1)

    async def lose_disk(self) -> None:
        """kill -9, and the data directory is gone."""
        p = self.random.choice(self.processors)
        await asyncio.to_thread(p.kill)
        for tables in (self.folder / "data" / "slots").glob("*/tables"):
            owner = tables.parent.with_suffix(".lock").read_text().strip()
            assert p.process is not None
            if owner == str(p.process.pid):
                shutil.rmtree(tables)
        p.start(wait=False)

    async def guest_comes_and_goes(self) -> None:
        """A third member joins, works, and leaves."""
        await asyncio.to_thread(self.guest.start, wait=False)
        await asyncio.sleep(self.random.uniform(2, 5))
        await asyncio.to_thread(self.guest.stop if self.random.random() < 0.5 else self.guest.kill)

    async def broker_pauses(self) -> None:
        await asyncio.to_thread(self.broker.pause)
        await asyncio.sleep(self.random.uniform(2, 8))
        await asyncio.to_thread(self.broker.resume)

    async def broker_dies(self) -> None:
        """kill -9 of the broker, and a start on the same data."""
        await asyncio.to_thread(self.broker.kill)
        await asyncio.sleep(self.random.random() * 2)
        await asyncio.to_thread(self.broker.start, tied=True)

    async def broker_is_slow(self) -> None:
        """A tenth of a second and more for every request and every answer."""
        self.proxy.delay = self.random.uniform(0.05, 0.2)
        await asyncio.sleep(self.random.uniform(3, 6))
        self.proxy.delay = 0.0

    async def connections_break(self) -> None:
        """All of them at once, a few times."""
        for _ in range(4):
            self.proxy.cut()
            await asyncio.sleep(self.random.random())

    async def acks_are_lost(self) -> None:
        """The broker has written what it was given, and who gave it never hears of that."""
        lost, end = self.proxy.lost, time.monotonic() + 30
        self.proxy.loss = 0.3
        await asyncio.sleep(self.random.uniform(2, 4))
        while self.proxy.lost < lost + 3 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.proxy.loss = 0.0
        assert self.proxy.lost >= lost + 3, "nothing was written meanwhile"

    async def disk_is_full(self) -> None:
        """No file of a processor may grow: it says so and waits, then goes on by itself."""
        await self.whole()
        p = max(self.processors, key=lambda p: len(self._owned_by(p)))
        assert p.process is not None
        unlimited = resource.prlimit(p.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(p.process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
        end = time.monotonic() + 120
        while "no room left on the disk" not in (told := await asyncio.to_thread(self._detail, p)):
            assert time.monotonic() < end, f"a full disk is not told of: {told}\n{p.tail()}"
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.random.uniform(1, 3))
        resource.prlimit(p.process.pid, resource.RLIMIT_FSIZE, unlimited)

    async def clock_steps(self) -> None:
        """A processor's clock is set hours ahead, then hours back, then right."""
        clock = self.random.choice(self.clocks)
        for hours in self.random.sample((-5, 5), 2):
            clock.step(hours * 3600)
            await asyncio.sleep(self.random.uniform(2, 4))
        clock.step(0)

    # ------------------------------------------------------------------ afterwards

    async def whole(self, seconds: float = 120) -> None:
        """Until the processors own every partition between them, caught up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if len(await asyncio.to_thread(self._owned)) == PARTITIONS:
                return
            await asyncio.sleep(0.1)
        tails = "\n".join(p.tail(8) for p in self.processors)
        raise TimeoutError(f"not whole after {seconds} s:\n{tails}")

    def _owned(self) -> set[int]:
        owned: set[int] = set()
        for p in self.processors:
            if p.process is None or p.process.poll() is not None:
                p.start(wait=False)  # its supervisor's part
            else:
                owned |= self._owned_by(p)
        return owned

    def _owned_by(self, p: ProcessorProcess) -> set[int]:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            body = httpx.get(f"{p.url}/readyz", timeout=2).json()
            return {x["partition"] for x in body["partitions"] if x["caught_up"]}
        return set()

    def _detail(self, p: ProcessorProcess) -> str:
        """Why a processor is not ready."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            return str(httpx.get(f"{p.url}/readyz", timeout=2).json().get("detail"))
        return ""

    async def settle(self, seconds: float = 180) -> Report:
        """Stop the orders, wait until every accepted one has ended, and check all that must hold."""
        self._stop.set()
        await self._load
        await self.whole()
        end = time.monotonic() + seconds
        runs: list[dict[str, Any]] = []
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                runs = await asyncio.to_thread(self._runs)
                if len(runs) >= self.report.accepted and all(r["status"] == "completed" for r in runs):
                    break
            await asyncio.sleep(0.5)
        self._check(runs)
        await asyncio.to_thread(self._check_histories, runs)
        await self._stop_processors()
        self.report.executions = self.notes.drain()
        await self._check_tables()
        return self.report

    def _runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            params = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
            page = httpx.get(f"{self.processors[0].url}/v1/runs", params=params, timeout=60).raise_for_status().json()
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    def _check(self, runs: list[dict[str, Any]]) -> None:
        r = self.report
        by_order = Counter(run["input"]["order"] for run in runs)
        r.completed = sum(run["status"] == "completed" for run in runs)
        r.lost = sum(number not in by_order for number in range(r.accepted)) + len(runs) - r.completed
        r.doubled = sum(count - 1 for count in by_order.values())
        places: dict[str, list[int]] = {}
        for run in runs:
            if run["status"] != "completed":
                r.problems.append(f"run {run['run_id']} is {run['status']}: {run['error'] or run['pause']}")
                continue
            number, output = run["input"]["order"], run["output"]
            places.setdefault(run["input"]["customer"], []).append(output["place"])
            expected = {"order": number, "charged": number * 3, "reserved": number + 1, "place": output["place"]}
            if output != expected:
                r.wrong += 1
                r.problems.append(f"order {number}: {output}")
        for customer, seen in places.items():
            if sorted(seen) != list(range(len(seen))):
                r.wrong += 1
                r.problems.append(f"the counter of {customer} is not exact")
        r.needed = STEPS * r.accepted + (r.accepted + 4) // 5

    def _check_histories(self, runs: list[dict[str, Any]], sample: int = 100) -> None:
        """No entry of a history completes twice, and its events are numbered without a gap."""
        with httpx.Client(base_url=self.processors[0].url, timeout=30) as http:
            for run in self.random.sample(runs, min(sample, len(runs))):
                end = time.monotonic() + 60
                while (answer := http.get(f"/v1/runs/{run['run_id']}/events")).is_error and time.monotonic() < end:
                    time.sleep(0.5)  # an owner that was cut off may not know yet that it is none any more
                events = answer.raise_for_status().json()
                events = events["items"] if isinstance(events, dict) else events
                done = Counter(e["entry"] for e in events if e["type"] == "workflow.step.completed")
                if any(n > 1 for n in done.values()) or [e["seq"] for e in events] != list(range(1, len(events) + 1)):
                    self.report.wrong += 1
                    self.report.problems.append(f"history of {run['run_id']}: {events}")

    async def _check_tables(self) -> None:
        """The tables are what the changelog says, and what the journal comes to from its first record on."""
        os.environ["AGNT5_TEST_LOG"] = str(self.notes.path)
        try:
            registry.load(str(self.module))
            bad = await judged(self.proxy.address, f"{self.name}.", PARTITIONS, self.folder)
        finally:
            del os.environ["AGNT5_TEST_LOG"]
        self.report.wrong += len(bad)
        self.report.problems += bad


FAULTS: tuple[str, ...] = (
    "kill", "kill_both", "freeze", "restart", "lose_disk", "guest_comes_and_goes", "broker_pauses", "broker_dies",
    "broker_is_slow", "connections_break", "acks_are_lost", "disk_is_full", "clock_steps",
)  # fmt: skip


async def run_schedule(
    folder: Path, broker: Any, proxy: Proxy, faults: list[str], *, seed: int, rate: float = 60, between: float = 2.0,
    told: Callable[[str], None] = lambda text: None,
) -> Report:  # fmt: skip
    """Orders flow while the faults come one after the other; returns what came of it all."""
    async with World(folder, broker, proxy, seed=seed, rate=rate) as world:
        await world.flow(between)
        for fault in faults:
            told(fault)
            await world.inject(fault)
            await world.flow(between)
        return await world.settle()


def behind(proxy: Proxy, port: int) -> dict[str, str]:
    """Settings of a broker on `port` that everybody reaches through `proxy`, but for the broker itself."""
    inside, controller = free_port(), free_port()
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},INSIDE://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://{proxy.address},INSIDE://127.0.0.1:{inside}",
        "inter.broker.listener.name": "INSIDE",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }


def seeded(seed: int, count: int) -> list[str]:
    """A schedule: every fault about equally often, in an order of the seed's."""
    rng = random.Random(seed)
    schedule: list[str] = []
    while len(schedule) < count:
        schedule += rng.sample(FAULTS, len(FAULTS))
    return schedule[:count]
