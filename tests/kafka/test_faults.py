"""A broker that dies, freezes or is not there yet costs time, never records or their order."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest, MetadataResponse_v0

from agnt5_engine.transport.base import Message, RetriableError, TopicPartition
from agnt5_engine.transport.kafka import KafkaLog
from agnt5_engine.transport.kafka import wire as wire_module
from agnt5_engine.transport.kafka.members import group_members
from agnt5_engine.transport.kafka.thread import Thread
from tests.kafka.real_log import everything, made, plain, spec


class Writer:
    """Appends numbers, one at a time and without pause, and remembers where each was said to have landed."""

    def __init__(self, log: KafkaLog, target: TopicPartition) -> None:
        self.acked: dict[int, int] = {}
        self._task = asyncio.create_task(self._write(log, target))

    async def _write(self, log: KafkaLog, target: TopicPartition) -> None:
        for n in itertools.count():
            ack = await log.append(target, [Message(None, b"%d" % n)])
            self.acked[n] = ack.offset

    async def more(self, count: int = 50) -> None:
        """Wait until that many further appends were acknowledged."""
        goal = len(self.acked) + count
        while len(self.acked) < goal:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def check(log: KafkaLog, target: TopicPartition, writer: Writer) -> None:
    """Every number once, in order, where its ack said."""
    records = await everything(log, target)
    values = [int(record.value or b"") for record in records]
    assert values == list(range(len(values)))
    assert len(values) in (len(writer.acked), len(writer.acked) + 1)  # the last may have landed unacknowledged
    assert all(records[offset].offset == offset and values[offset] == n for n, offset in writer.acked.items())


async def test_appends_survive_the_death_of_the_broker_without_loss_or_reorder(own_kafka: Any, fresh: Any) -> None:
    log = KafkaLog(plain(own_kafka.bootstrap))
    targets = [TopicPartition((await made(log, fresh("t"), 3)).topic, p) for p in range(3)]
    writers = [Writer(log, target) for target in targets]
    for _ in range(2):
        await asyncio.gather(*(writer.more() for writer in writers))
        await asyncio.to_thread(own_kafka.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_kafka.start, tied=True)
    await asyncio.gather(*(writer.more() for writer in writers))
    for target, writer in zip(targets, writers, strict=True):
        await writer.stop()
        await check(log, target, writer)
    await log.close()


async def test_a_frozen_broker_is_asked_again_and_takes_each_record_once(
    own_kafka: Any, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "REQUEST_TIMEOUT_MS", 1_000)
    log = KafkaLog(plain(own_kafka.bootstrap))
    target = await made(log, fresh("t"))
    writer = Writer(log, target)
    await writer.more()
    own_kafka.pause()
    async with asyncio.timeout(30):  # several requests time out meanwhile; all of them wait in the broker's socket
        while (log.wire.away_for or 0) < 2.5:
            await asyncio.sleep(0.05)
    before = len(writer.acked)
    own_kafka.resume()
    await writer.more()
    assert before > 0
    assert log.wire.away_for is None
    await writer.stop()
    await check(log, target, writer)
    await log.close()


async def test_an_append_without_an_answer_is_given_up_at_its_deadline_and_the_next_ones_go_on(
    own_kafka: Any, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "REQUEST_TIMEOUT_MS", 500)
    log = KafkaLog(plain(own_kafka.bootstrap), delivery_timeout=2.0)
    target = await made(log, fresh("t"))
    await log.append(target, [Message(None, b"0")])
    own_kafka.pause()
    late = asyncio.create_task(log.append(target, [Message(None, b"unknown")]))
    with pytest.raises(RetriableError, match="unknown whether the append landed"):
        await late
    own_kafka.resume()
    for n in range(1, 4):
        await log.append(target, [Message(None, b"%d" % n)])
    values = [record.value for record in await everything(log, target)]
    assert [value for value in values if value != b"unknown"] == [b"0", b"1", b"2", b"3"]
    await log.close()


async def test_checkpoints_survive_the_death_of_the_broker(own_kafka: Any, fresh: Any) -> None:
    log = KafkaLog(plain(own_kafka.bootstrap))
    journal, changelog = TopicPartition(fresh("j"), 0), TopicPartition(fresh("c"), 0)
    await log.create([spec(journal.topic), spec(changelog.topic)], 1)
    name, group = fresh("id"), fresh("g")
    checkpointer = log.checkpointer(name, group, changelog)
    await checkpointer.open()
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await checkpointer.write([Message(b"n", b"%d" % written)] * 5, journal, written + 1)
            written += 1

    task = asyncio.create_task(write())
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_kafka.kill)
    await asyncio.to_thread(own_kafka.start, tied=True)
    seen = written
    while written < seen + 5:
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await checkpointer.write([Message(b"last", b"x")], journal, 10**6)
    await log.checkpointer(name, group, changelog).open()
    values = [int(r.value or b"") for r in await everything(log, changelog) if r.key == b"n"]
    assert values in ([n for n in range(count) for _ in range(5)] for count in (written, written + 1))
    assert await log.committed(group, journal) == 10**6
    await log.close()


async def test_a_broker_that_is_not_there_yet_is_waited_for(own_kafka: Any, fresh: Any) -> None:
    log = KafkaLog(plain(own_kafka.bootstrap))
    target = await made(log, fresh("t"))
    await log.close()
    await asyncio.to_thread(own_kafka.stop)
    waiting = KafkaLog(plain(own_kafka.bootstrap))
    appended = asyncio.create_task(waiting.append(target, [Message(b"k", b"v")]))
    asked = asyncio.create_task(waiting.bounds(target))
    async with asyncio.timeout(30):
        while (waiting.wire.away_for or 0) < 0.5:
            await asyncio.sleep(0.05)
    assert not appended.done()
    assert not asked.done()
    await asyncio.to_thread(own_kafka.start, tied=True)
    assert (await appended).offset == 0
    assert (await asked)[0] == 0
    await waiting.close()


async def test_brokers_that_were_all_replaced_are_found_again_by_whoever_asks_any_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = 1

    class Moving(wire_module.Client):
        """Of a cluster with one broker, which the servers it was given always lead to."""

        async def bootstrap(self) -> None:
            self.known = there

        def get_random_node(self) -> int:
            return self.known

        async def send(self, node: int, request: Any, *, group: Any) -> str:
            if node != there:
                raise errors.NodeNotReadyError()
            return "answered"

        async def force_metadata_update(self) -> bool:
            return self.known == there

        async def close(self) -> None: ...

    monkeypatch.setattr(wire_module, "Client", Moving)
    wire = wire_module.Wire(plain("anywhere:9092"), patience=5)
    assert await wire.ask(None) == "answered"
    there = 2
    assert await wire.ask(None) == "answered"
    await wire.close()


def silent(timeout_ms: int) -> AIOKafkaConnection:
    """A connection, made, over which no answer ever comes."""
    connection = AIOKafkaConnection("anywhere", 9092, request_timeout_ms=timeout_ms)
    connection._reader, connection._writer = asyncio.StreamReader(), Mock()
    connection._read_task = asyncio.get_running_loop().create_future()
    connection._closed_fut = asyncio.gather()  # done
    connection._versions = {3: (0, 0)}
    return connection


async def test_requests_whose_time_runs_out_at_the_same_moment_can_all_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those are that a producer sends to a frozen broker together."""
    client = wire_module.Client(bootstrap_servers="anywhere:9092", request_timeout_ms=100)
    client.cluster.update_metadata(MetadataResponse_v0([(1, "anywhere", 9092)], []))

    async def connect(*_: Any, **__: Any) -> AIOKafkaConnection:
        await asyncio.sleep(0.01)
        return silent(100)

    monkeypatch.setattr("aiokafka.client.create_conn", connect)

    async def ask() -> list[type[BaseException] | None]:
        problems = []
        for _ in range(3):
            try:
                await client.send(1, MetadataRequest([], allow_auto_topic_creation=True))
            except Exception as problem:
                problems.append(type(problem))
        return problems

    for problems in await asyncio.gather(*(ask() for _ in range(4))):
        assert set(problems) <= {errors.RequestTimedOutError, errors.KafkaConnectionError}
    await client.close()


async def test_a_connection_that_its_broker_has_ended_is_closed_when_another_is_made_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiokafka only forgets it when it is asked for before its reader has seen the end: its socket stayed open, and
    whoever had sent something over it waited until the time for an answer was over."""
    client = wire_module.Client(bootstrap_servers="anywhere:9092", request_timeout_ms=60_000)
    client.cluster.update_metadata(MetadataResponse_v0([(1, "anywhere", 9092)], []))
    readers, writers = [], []

    async def connect(*_: Any, **__: Any) -> AIOKafkaConnection:
        connection = silent(60_000)
        readers.append(connection._reader)
        writers.append(connection._writer)
        return connection

    monkeypatch.setattr("aiokafka.client.create_conn", connect)
    asking = asyncio.create_task(client.send(1, MetadataRequest([], allow_auto_topic_creation=True)))
    while not (writers and writers[0].write.called):
        await asyncio.sleep(0)
    readers[0].feed_eof()
    assert await client.ready(1)
    assert len(writers) == 2
    assert writers[0].close.called
    with pytest.raises(errors.KafkaConnectionError):
        await asyncio.wait_for(asking, 10)
    await client.close()


async def test_a_connection_that_takes_longer_to_make_than_its_client_to_close_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does to a broker that is frozen."""
    client = wire_module.Client(bootstrap_servers="anywhere:9092")
    client.cluster.update_metadata(MetadataResponse_v0([(1, "anywhere", 9092)], []))
    made, let, connection = asyncio.Event(), asyncio.Event(), Mock()

    async def slowly(*_: Any, **__: Any) -> Any:
        made.set()
        await let.wait()
        return connection

    monkeypatch.setattr("aiokafka.client.create_conn", slowly)
    connecting = asyncio.create_task(client.ready(1))
    await made.wait()
    await client.close()
    let.set()
    await connecting
    assert connection.close.called


async def test_a_client_closes_its_connections_also_when_it_failed_to_follow_the_metadata() -> None:
    client, connection = wire_module.Client(bootstrap_servers="anywhere:9092"), Mock()
    connection.close.return_value = asyncio.gather()  # done

    async def fails() -> None:
        raise ValueError("an answer that cannot be read")

    client._conns[1, "default"] = connection
    client._sync_task = asyncio.create_task(fails())
    await asyncio.wait([client._sync_task])
    with pytest.raises(ValueError, match="cannot be read"):
        await client.close()
    assert connection.close.called


async def test_a_member_whose_connections_do_not_close_in_time_ends_all_the_same() -> None:
    """It had been waited for once, in vain: the futures that tell of it are cancelled."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    never.cancel()
    client = wire_module.Client(bootstrap_servers="anywhere:9092")
    client._conns[1, "default"] = Mock(close=lambda **_: never)
    consumer = SimpleNamespace(_client=client, _fetcher=None, _coordinator=None)
    member: Any = SimpleNamespace(_consumer=consumer)
    await Thread._abandon(member)


async def test_whoever_is_still_at_work_with_a_closed_client_gets_no_connection(kafka: str) -> None:
    client = wire_module.Client(bootstrap_servers=kafka)
    await client.bootstrap()
    (node,) = [broker.nodeId for broker in client.cluster.brokers()]
    assert await client.ready(node)
    await client.close()
    assert not await client.ready(node)
    assert not any(connection.connected() for connection in client._conns.values())


async def test_whoever_asks_for_leaders_of_a_frozen_broker_is_let_go_when_the_connection_is_closed(
    own_kafka: Any,
) -> None:
    """The members of the group are asked for over a connection that is closed when the membership is lost."""
    wire = wire_module.Wire(plain(own_kafka.bootstrap), patience=30)
    await wire.ready()
    own_kafka.pause()
    asking = asyncio.create_task(wire.refresh())
    await asyncio.sleep(0.1)
    await wire.close()
    with pytest.raises(RetriableError, match="closed"):
        await asyncio.wait_for(asking, 5)


async def test_a_request_under_way_does_not_open_a_closed_connection_anew(own_kafka: Any, fresh: Any) -> None:
    wire = wire_module.Wire(plain(own_kafka.bootstrap), patience=30)
    await group_members(wire, fresh("g"), "journal")
    own_kafka.pause()
    asking = asyncio.create_task(group_members(wire, fresh("g"), "journal"))
    await asyncio.sleep(0.1)
    await wire.close()
    own_kafka.resume()
    with pytest.raises(RetriableError, match="closed"):
        await asyncio.wait_for(asking, 5)
    assert wire._client is None


async def test_what_many_partitions_have_waiting_is_never_more_than_a_broker_takes_in_one_request(
    kafka_broker: Any, fresh: Any
) -> None:
    broker = kafka_broker({"socket.request.max.bytes": str(6 * 2**20)})  # the default is reached by 105 partitions
    log = KafkaLog(plain(broker.bootstrap), delivery_timeout=10.0)
    topic = (await made(log, fresh("t"), 8)).topic
    targets = [TopicPartition(topic, p) for p in range(8)]
    for _ in range(2):
        await asyncio.gather(*(log.append(target, [Message(b"k", bytes(950_000))]) for target in targets))
    for target in targets:
        assert len(await everything(log, target)) == 2
    await log.close()
