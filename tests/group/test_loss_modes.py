"""The ways in which stock Faust loses or doubles events: the same things happen here, and nothing comes of them.

| mode | what happens | stock Faust |
|---|---|---|
| L1 | the log takes its time to write, kill -9 | has committed events whose effects never got into the log |
| L2 | one event takes long, later ones are done, kill -9 | has committed past it |
| L3 | handling an event raises, once | takes it for done |
| L4 | the log refuses a record for good | logs that, and commits |
| L5 | as L1 | its local table has rows that the log has not |
| L6 | a second process joins | does again what was done and not yet committed |
| L7 | a process is frozen and wakes when another has its partition | it writes over what the other one wrote |

L7 is test_zombie.py; retries of the producer, which Faust leaves without idempotence (L4 too), are in
tests/kafka/test_producer.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from agnt5_engine.records.avro import decode
from agnt5_engine.records.journal import RunRequested
from agnt5_engine.transport.base import TopicPartition
from agnt5_engine.transport.kafka.topics import Change
from tests.engine.processes import ProcessorProcess, free_port
from tests.faults.proxy import Proxy
from tests.faults.world import behind
from tests.group.test_zombie import kept_locally
from tests.group.world import Group, create, group_of, lines, opened, run, until
from tests.kafka.administrator import administrator

APP = """
import asyncio, os
from pathlib import Path
from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import event

around = Path(__file__).parent
log = os.open(around / "charged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@function(retries={"max_attempts": 1000, "initial_interval_ms": 100, "max_interval_ms": 200})
async def charge(ctx: FunctionContext, order: int, held: bool, fails: bool) -> int:
    os.write(log, f"{order} {os.getpid()} begun\\n".encode())
    while held and (around / "held").exists():
        await asyncio.sleep(0.02)
    if fails and (around / "failing").exists():
        raise ConnectionError("the payment service is away")
    os.write(log, f"{order} {os.getpid()} charged\\n".encode())
    return order * 2

@workflow(triggers=[event(TOPIC)])
async def orders(ctx: WorkflowContext, order: int, customer: str, held: bool, fails: bool, note: str) -> dict:
    return {"order": order, "charged": await ctx.step(charge, order, held, fails)}
"""

#: The odd one among the orders of a batch.
ODD = 3
#: More than a topic takes while it is made to take less, and than goes with others into one batch of stock Faust's.
LARGE = "." * 20_000
SLOW_SECONDS = 0.7


class Orders:
    """Orders on a topic of one partition, and what became of them."""

    def __init__(self, bootstrap: str, folder: Path, name: str) -> None:
        self.bootstrap, self.folder, self.name = bootstrap, folder, name
        self.topic = f"{name}.orders"
        self.made = 0
        run(create(bootstrap, self.topic, 1))

    def place(self, count: int = 10, odd: dict[str, Any] | None = None, **all_: Any) -> set[int]:
        """Put orders on the topic, one of them odd; the numbers of the others."""
        numbers = range(self.made, self.made + count)
        plain = {"held": False, "fails": False, "note": "."}
        orders = [plain | {"order": n, "customer": str(n)} | all_ for n in numbers]
        if odd is not None:
            orders[ODD] |= odd
        run(_produce(self.bootstrap, self.topic, orders))
        self.made += count
        return set(numbers) - ({self.made - count + ODD} if odd is not None else set())

    def committed(self) -> int:
        async def ask() -> int:
            async with opened(self.bootstrap) as log:
                return await log.committed(self.name, TopicPartition(self.topic, 0)) or 0

        return run(ask())

    def seen(self, what: str) -> Counter[int]:
        """How often the charging of each order was begun, or has ended."""
        path = self.folder / "charged"
        told = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter(int(order) for order, _, happened in told if happened == what)

    def charged(self) -> Counter[int]:
        return self.seen("charged")

    @contextmanager
    def flag(self, name: str) -> Iterator[None]:
        (self.folder / name).touch()
        try:
            yield
        finally:
            (self.folder / name).unlink()

    @contextmanager
    def small(self, topics: list[str]) -> Iterator[None]:
        """While this lasts, these topics refuse large records."""
        usual = run(self._put(dict.fromkeys(topics, "10000")))
        try:
            yield
        finally:
            run(self._put(usual))

    async def _put(self, limits: dict[str, str]) -> dict[str, str]:
        async with opened(self.bootstrap) as log:
            topics, setting = list(limits), "max.message.bytes"
            before = {topic: info.config[setting] for topic, info in (await log.topics(topics)).items()}
            await log.change([Change(topic, setting, before[topic], limit) for topic, limit in limits.items()])
            while any(info.config[setting] != limits[topic] for topic, info in (await log.topics(topics)).items()):
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)  # described is not yet obeyed
            return before

    def commits(self, up_to: int, seconds: float = 30) -> bool:
        """Whether it commits so far within this time."""
        end = time.monotonic() + seconds
        while self.committed() < up_to:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


async def _produce(bootstrap: str, topic: str, values: Sequence[Any], key: bytes | None = None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for value in values:
            await producer.send(topic, json.dumps(value).encode(), key=key)
        await producer.flush()
    finally:
        await producer.stop()


class _Network(Proxy):
    """Lets what is written to some topics through one request at a time and slowly, and everything else at once."""

    slow: Sequence[str] = ()

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, writes: set[int]) -> None:
        while True:
            size = await source.readexactly(4)
            frame = await source.readexactly(int.from_bytes(size, "big"))
            if frame[:2] == b"\0\0" and any(topic.encode() in frame for topic in self.slow):  # 0: Produce
                await asyncio.sleep(SLOW_SECONDS)
            sink.write(size + frame)
            await sink.drain()


class SlowKafka:
    """A broker that takes its time with what is written to some topics."""

    def __init__(self, network: _Network, loop: asyncio.AbstractEventLoop) -> None:
        self.address = network.address
        self._network, self._loop = network, loop

    @contextmanager
    def at(self, topics: Sequence[str]) -> Iterator[None]:
        self._network.slow = topics
        yield
        self._loop.call_soon_threadsafe(self._network.cut)  # whoever was writing is dead by now
        time.sleep(0.1)
        self._network.slow = ()


@pytest.fixture
def slow_kafka(kafka_broker: Any) -> Iterator[SlowKafka]:
    network = _Network(free_port())
    port = free_port()
    broker = kafka_broker(behind(network, port), port=port)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(network.start(broker.ports["PLAINTEXT"]), loop).result()
    yield SlowKafka(network, loop)
    asyncio.run_coroutine_threadsafe(network.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


# -- here


class Ours:
    def __init__(self, group: Group) -> None:
        group.module.write_text(APP.replace("TOPIC", repr(group.topic)))
        self.group = group
        self.orders = Orders(group.bootstrap, group.folder, group.name)
        self.state = [f"{group.name}.journal", f"{group.name}.state-changelog"]
        self.processor = group.start("a")

    def wait(self, orders: set[int]) -> None:
        until(lambda: orders <= set(self.orders.charged()), self.processor.tail)

    def assert_each_completed_once(self, processor: ProcessorProcess) -> None:
        assert self.group.wait_completed(processor, self.orders.made) == dict.fromkeys(range(self.orders.made), 1)


@contextmanager
def ours_on(bootstrap: str, folder: Path) -> Iterator[Ours]:
    with group_of(bootstrap, folder, partitions=1, checkpoint_interval=0.5) as group:
        yield Ours(group)


@pytest.fixture
def ours(kafka: str, tmp_path: Path) -> Iterator[Ours]:
    with ours_on(kafka, tmp_path) as made:
        yield made


def test_l1_l5_an_event_is_committed_and_a_row_kept_only_once_the_log_has_taken_what_came_of_it(
    slow_kafka: SlowKafka, tmp_path: Path
) -> None:
    with ours_on(slow_kafka.address, tmp_path) as ours:
        ours.wait(ours.orders.place())
        until(lambda: ours.orders.committed() == 10, ours.processor.tail)
        with slow_kafka.at(ours.state):
            ours.orders.place(30, note=LARGE)
            ours.orders.commits(40, 1.5)
            ours.processor.kill()
        journal = [decode(record.value or b"") for record in ours.group.journal()]
        assert sum(isinstance(record, RunRequested) for record in journal) >= ours.orders.committed()
        (folder,) = (tmp_path / "a").glob("slots/*/tables/*/0")
        assert kept_locally(folder).items() <= ours.group.rows().items(), "no row that the changelog has not"
        ours.assert_each_completed_once(ours.group.start("elsewhere"))


def test_l2_an_event_that_others_overtake_is_not_forgotten(ours: Ours) -> None:
    with ours.orders.flag("held"):
        ours.wait(ours.orders.place(odd={"held": True}))
        assert ours.orders.commits(10), "it is in the journal"
        ours.processor.kill()
    ours.assert_each_completed_once(ours.group.start("elsewhere"))


def test_l3_an_event_whose_handling_raises_is_tried_again(ours: Ours) -> None:
    with ours.orders.flag("failing"):
        ours.wait(ours.orders.place(odd={"fails": True}))
        until(lambda: ours.orders.seen("begun")[ODD] > 1, ours.processor.tail)
    ours.assert_each_completed_once(ours.processor)


def test_l4_an_event_is_not_committed_when_the_log_refuses_what_came_of_it(ours: Ours) -> None:
    with ours.orders.small(ours.state):
        ours.orders.place(odd={"note": LARGE})
        assert not ours.orders.commits(ODD + 1, 3)
        assert ours.processor.process is not None
        assert ours.processor.process.wait(60) != 0, "it says so, and ends"
    ours.assert_each_completed_once(ours.processor.start())


def test_l6_what_was_done_is_not_done_again_when_another_joins(ours: Ours) -> None:
    other = ours.group.processor("b").start(wait=False)
    until(lambda: (ours.orders.place(), lines(other, "partitions.assigned"))[1], other.tail)
    ours.wait(ours.orders.place())
    assert ours.orders.charged() == Counter(range(ours.orders.made))
    ours.assert_each_completed_once(ours.processor)


# -- on stock Faust


class Stock:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.changelog = f"{orders.name}-notes-changelog"
        self.log = orders.folder / "faust.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, data: str, *, concurrency: int = 1, commit_seconds: float = 0.5) -> subprocess.Popen[bytes]:
        o = self.orders
        arguments = [o.bootstrap, o.name, str(o.folder / data), str(concurrency), str(commit_seconds)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.group.stock_faust", *arguments], stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-40:])

    def wait(self, orders: set[int]) -> None:
        until(lambda: orders <= set(self.orders.charged()), self.tail)

    def written(self) -> list[tuple[str, str]]:
        """The changelog: customers, and the notes of each so far."""

        async def read() -> list[tuple[str, str]]:
            async with opened(self.orders.bootstrap) as log:
                source = TopicPartition(self.changelog, 0)
                records = [r async for batch in log.read(source, *await log.bounds(source)) for r in batch.records]
                return [(json.loads(r.key or b""), json.loads(r.value or b"")) for r in records]

        return run(read())

    def notes(self) -> dict[str, str]:
        """What the changelog comes to."""
        return dict(self.written())

    def has_nobody(self) -> bool:
        """Whether the group has no member left."""

        async def ask() -> bool:
            async with administrator(self.orders.bootstrap) as admin:
                (response,) = await admin.describe_consumer_groups([self.orders.name])
                return bool(response.groups[0][2] == "Empty")

        return run(ask())

    def local(self, data: str) -> set[str]:
        """The customers in the local table."""
        import rocksdict

        (path,) = (self.orders.folder / data).glob("**/notes-0.db")
        database = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))
        try:
            return {json.loads(key) for key in database.keys() if not key.startswith(b"__faust")}  # noqa: SIM118
        finally:
            database.close()


@contextmanager
def stock_on(bootstrap: str, folder: Path) -> Iterator[Stock]:
    stock = Stock(Orders(bootstrap, folder, f"stock{uuid.uuid4().hex[:8]}"))
    try:
        yield stock
    finally:
        for process in stock.processes:
            process.kill()
            process.wait()


@pytest.fixture
def stock(kafka: str, tmp_path: Path) -> Iterator[Stock]:
    with stock_on(kafka, tmp_path) as made:
        yield made


def test_stock_faust_loses_events_and_makes_rows_up_in_modes_l1_and_l5(slow_kafka: SlowKafka, tmp_path: Path) -> None:
    with stock_on(slow_kafka.address, tmp_path) as stock:
        process = stock.start("a")
        stock.wait(stock.orders.place())
        until(lambda: len(stock.notes()) == 10, stock.tail)
        with slow_kafka.at([stock.changelog]):
            slow = {str(n) for n in stock.orders.place(30, note=LARGE)}
            assert stock.orders.commits(40), "L1: committed"
            process.kill()
            process.wait()
        lost = slow - stock.notes().keys()
        assert lost, "L1: and not in the log"
        assert lost & stock.local("a"), "L5: but in the local table"


def test_stock_faust_loses_events_in_modes_l2_to_l4(stock: Stock) -> None:
    orders = stock.orders
    process = stock.start("a", concurrency=2)
    stock.wait(orders.place())
    odd = orders.made + ODD
    with orders.flag("failing"):
        stock.wait(orders.place(odd={"fails": True}))
        assert orders.commits(orders.made), "L3: committed"
    stock.wait(orders.place())
    assert odd not in orders.charged(), "L3: and never tried again"

    odd = orders.made + ODD
    with orders.small([stock.changelog]):
        stock.wait(orders.place(odd={"note": LARGE}))
        assert orders.commits(orders.made), "L4: committed"
    until(lambda: str(orders.made - 1) in stock.notes(), stock.tail)
    assert str(odd) not in stock.notes(), "L4: not in the log"

    odd = orders.made + ODD
    with orders.flag("held"):
        stock.wait(orders.place(odd={"held": True}))
        assert orders.commits(odd + 1), "L2: committed past it"
        process.kill()
        process.wait()
    stock.start("a")
    stock.wait(orders.place())
    assert odd not in orders.charged(), "L2: and it is never done"


def test_stock_faust_does_events_twice_in_mode_l6(stock: Stock) -> None:
    stock.start("a", commit_seconds=600)
    stock.wait(stock.orders.place())
    stock.start("b", commit_seconds=600)
    until(lambda: stock.orders.charged()[0] > 1, stock.tail)


def test_stock_faust_writes_over_a_successor_in_mode_l7(stock: Stock) -> None:
    orders = stock.orders
    process = stock.start("a")
    with orders.flag("held"):
        orders.place(customer="one", odd={"held": True})
        until(lambda: orders.seen("begun")[ODD], stock.tail)
        until(lambda: stock.notes() == {"one": "." * ODD}, stock.tail)
        process.send_signal(signal.SIGSTOP)
    until(stock.has_nobody, stock.tail)
    run(_produce(orders.bootstrap, stock.changelog, ["of a successor"], key=b'"one"'))
    process.send_signal(signal.SIGCONT)
    until(lambda: stock.written()[ODD:][:2] == [("one", "of a successor"), ("one", "." * (ODD + 1))], stock.tail)
