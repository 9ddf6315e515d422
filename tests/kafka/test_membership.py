"""Who owns what, and what becomes of it when members come, go, die or are restarted."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from agnt5_engine import place
from agnt5_engine.place import PLACE
from agnt5_engine.transport.base import BadTopicError, Message, Record, TopicPartition, TransportError
from agnt5_engine.transport.kafka import KafkaLog, thread
from agnt5_engine.transport.kafka.batch import BatchWriter
from tests.kafka.administrator import delete_records
from tests.kafka.processors import SESSION_TIMEOUT, Child, Processor, make_journal, until
from tests.kafka.real_log import everything, made, plain, spec

ALL = {0, 1, 2, 3}


async def test_two_members_split_the_journal_and_each_record_goes_to_its_owner(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a").start()
    await until(lambda: a.sink.journal_partitions() == ALL)
    b = await Processor(kafka, group, journal, "b").start()
    await until(lambda: len(a.sink.journal_partitions()) == len(b.sink.journal_partitions()) == 2)
    assert a.sink.journal_partitions() | b.sink.journal_partitions() == ALL
    for partition in ALL:
        await log.append(TopicPartition(journal, partition), [Message(b"k", b"v")] * 100)
    await until(lambda: sum(len(offsets) for p in (a, b) for offsets in p.sink.seen.values()) == 400)
    for processor in (a, b):
        assert {source.partition for source in processor.sink.seen} == processor.sink.journal_partitions()
        assert all(offsets == list(range(100)) for offsets in processor.sink.seen.values())
    members = await a.membership.members()
    assert [(m.instance_id, m.url) for m in members] == [("a", "http://a:8080"), ("b", "http://b:8080")]
    assert [set(m.partitions) for m in members] == [a.sink.journal_partitions(), b.sink.journal_partitions()]
    await a.stop(leave=True)
    await b.stop(leave=True)


async def test_what_a_member_keeps_in_a_rebalance_is_not_taken_from_it(log: KafkaLog, fresh: Any, kafka: str) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    session = 60.0
    a = await Processor(kafka, group, journal, "a", session_timeout=session).start()
    await until(lambda: a.sink.journal_partitions() == ALL)
    b = await Processor(kafka, group, journal, "b", session_timeout=session).start()
    await until(lambda: len(b.sink.journal_partitions()) == 2)
    await until(lambda: len(a.sink.journal_partitions()) == 2)
    lost = {source.partition for kind, sources in a.sink.events if kind == "revoked" for source in sources}
    assert lost == b.sink.journal_partitions()
    for partition in ALL:
        await log.append(TopicPartition(journal, partition), [Message(b"k", b"v")] * 10)
    await until(lambda: sum(len(offsets) for p in (a, b) for offsets in p.sink.seen.values()) == 40)
    await b.stop(leave=True)
    assert await until(lambda: a.sink.journal_partitions() == ALL) < session / 2
    await a.stop(leave=True)


async def test_a_restarted_member_has_its_partitions_back_without_a_rebalance_and_is_found_at_its_new_address(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a").start()
    b = await Processor(kafka, group, journal, "b").start()
    await until(lambda: len(a.sink.journal_partitions()) == len(b.sink.journal_partitions()) == 2)
    await until(lambda: a.sink.events[-1][0] == b.sink.events[-1][0] == "assigned")
    before, events = b.sink.journal_partitions(), len(a.sink.events)
    await b.stop(leave=False)
    b = await Processor(kafka, group, journal, "b", url="http://elsewhere:9000").start()
    await until(lambda: b.sink.journal_partitions() == before)
    await asyncio.sleep(SESSION_TIMEOUT / 2)
    assert len(a.sink.events) == events, "the other member did not notice"
    assert {m.instance_id: m.url for m in await a.membership.members()}["b"] == "http://elsewhere:9000"
    for partition in before:
        await log.append(TopicPartition(journal, partition), [Message(b"k", b"v")])
    await until(lambda: len(b.sink.seen) == 2)
    await a.stop(leave=True)
    await b.stop(leave=True)


async def test_a_member_that_stops_closes_its_connections_on_the_loop_that_made_them(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a").start()
    await until(lambda: a.sink.journal_partitions() == ALL)
    thread = a.membership._consumer._thread  # type: ignore[attr-defined]
    client, loops = thread._ensure_consumer()._client, []
    close = client.close

    async def noted() -> None:
        loops.append(asyncio.get_running_loop())
        await close()

    client.close = noted
    thread.close()  # as Faust does at any time
    await a.stop(leave=True)
    assert loops == [thread.thread_loop]
    assert not any(connection.connected() for connection in client._conns.values())


async def test_when_a_member_is_killed_another_takes_over_within_the_session_timeout(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a").start()
    b = await Child.start(kafka, group, journal, "b")
    await until(lambda: len(b.assigned()) == 2)
    await until(lambda: len(a.sink.journal_partitions()) == 2)
    await b.kill()
    # As long as a rebalance may last, 15 s, would be more: it waits for nobody.
    assert await until(lambda: a.sink.journal_partitions() == ALL) < SESSION_TIMEOUT + 6
    await a.stop(leave=True)


async def test_a_member_that_was_frozen_gives_up_everything_before_it_takes_anything(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a").start()
    b = await Child.start(kafka, group, journal, "b")
    await until(lambda: len(b.assigned()) == 2)
    owned = b.assigned()
    b.process.send_signal(signal.SIGSTOP)
    await until(lambda: a.sink.journal_partitions() == ALL)
    b.process.send_signal(signal.SIGCONT)
    await until(lambda: len(b.events) >= 3)
    assert b.events[:2] == [("assigned", owned), ("revoked", owned)]
    assert len(b.assigned()) == 2
    await until(lambda: len(a.sink.journal_partitions()) == 2)
    await b.kill()
    await a.stop(leave=True)


async def test_a_dead_member_is_dropped_at_once_and_one_that_has_its_name_since_is_not(
    log: KafkaLog, fresh: Any, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    session = 300.0
    a = await Processor(kafka, group, journal, "a", session_timeout=session).start()
    for name in ("first", "second"):
        monkeypatch.setenv(PLACE, name)
        b = await Child.start(kafka, group, journal, "b", session)
        await until(lambda: len(b.assigned()) == 2)  # noqa: B023
        await until(lambda: len(a.sink.journal_partitions()) == 2)
        await b.kill()
    assert await log.drop_place(group, journal, "first") == []
    assert await log.drop_place(group, journal, "second") == ["b"]
    await until(lambda: a.sink.journal_partitions() == ALL)
    await a.stop(leave=True)


async def test_a_trigger_topic_created_later_is_picked_up(log: KafkaLog, fresh: Any, kafka: str) -> None:
    group, journal, topic = fresh("g"), fresh("journal"), fresh("user.signed_up")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await until(lambda: a.sink.journal_partitions() == ALL)
    # A member that was restarted does not lead the group, and the leader is who would notice.
    await a.stop(leave=False)
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await until(lambda: a.sink.journal_partitions() == ALL)
    assert topic not in await log.topics()
    await log.create([spec(topic, 2)], 1)
    await log.append(TopicPartition(topic, 1), [Message(None, b"early")])
    await until(lambda: b"early" in a.sink.values)
    assert not any(kind == "revoked" for kind, _ in a.sink.events)
    await a.stop(leave=True)


async def test_a_deployment_with_other_triggers_gets_them(log: KafkaLog, fresh: Any, kafka: str) -> None:
    group, journal, old, new = fresh("g"), fresh("journal"), fresh("old"), fresh("new")
    await make_journal(log, journal)
    await log.create([spec(old, 2), spec(new, 2)], 1)
    a = await Processor(kafka, group, journal, "a", triggers=[old]).start()
    await until(lambda: len(a.sink.owned) == 6)
    await a.stop(leave=False)
    a = await Processor(kafka, group, journal, "a", triggers=[new]).start()
    await until(lambda: {source.topic for source in a.sink.owned} == {journal, new})
    await log.append(TopicPartition(new, 0), [Message(None, b"event")])
    await log.append(TopicPartition(journal, 0), [Message(None, b"command")])
    await until(lambda: set(a.sink.values) == {b"event", b"command"})
    await a.stop(leave=True)


async def test_events_acknowledged_before_a_restart_do_not_come_again(log: KafkaLog, fresh: Any, kafka: str) -> None:
    group, journal, topic = fresh("g"), fresh("journal"), fresh("topic")
    await make_journal(log, journal)
    await log.create([spec(topic)], 1)
    source = TopicPartition(topic, 0)
    await log.append(source, [Message(None, b"%d" % n) for n in range(1_000)])
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await until(lambda: len(a.sink.values) == 1_000)
    await a.stop(leave=False)
    assert await log.committed(group, source) == 1_000
    assert await log.committed(group, TopicPartition(journal, 0)) is None
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await log.append(source, [Message(None, b"next")])
    await until(lambda: a.sink.values)
    assert a.sink.values == [b"next"]
    await a.stop(leave=True)


async def test_events_that_another_took_in_while_a_member_was_frozen_do_not_come_to_it_again(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal, topic = fresh("g"), fresh("journal"), fresh("topic")
    await make_journal(log, journal)
    await log.create([spec(topic)], 1)
    source = TopicPartition(topic, 0)
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await until(lambda: source in a.sink.owned)
    await log.append(source, [Message(None, b"first")] * 5)
    await until(lambda: len(a.sink.values) == 5)
    while await log.committed(group, source) != 5:
        await asyncio.sleep(0.1)
    async with AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False) as another:
        a.membership.pause(source)  # as long as it does not know better, it would take what it had asked for
        a.membership._consumer._thread.post(time.sleep, 1.0)  # type: ignore[attr-defined]
        assert await log.drop_place(group, journal, place.name) == ["a"]
        await log.append(source, [Message(None, b"another's")] * 5)
        await another._coordinator.commit_offsets(None, {KafkaPartition(*source): OffsetAndMetadata(10, "")})
    await until(lambda: [kind for kind, _ in a.sink.events] == ["assigned", "revoked", "assigned"])
    await asyncio.sleep(1.0)  # it commits now and again
    assert await log.committed(group, source) == 10
    await log.append(source, [Message(None, b"next")])
    await until(lambda: a.sink.values[-1] == b"next")
    assert a.sink.values == [b"first"] * 5 + [b"next"]
    while await log.committed(group, source) != 11:
        await asyncio.sleep(0.1)
    await a.stop(leave=True)


async def test_a_journal_of_another_shape_is_refused_with_the_remedy(log: KafkaLog, fresh: Any, kafka: str) -> None:
    group, journal = fresh("g"), fresh("journal")
    with pytest.raises(BadTopicError, match="make it with `agnt5 topics apply`"):
        await Processor(kafka, group, journal, "a").start()
    await make_journal(log, journal, 3)
    with pytest.raises(BadTopicError, match="set AGNT5_PARTITIONS=3"):
        await Processor(kafka, group, journal, "a").start()


async def test_a_session_timeout_that_the_broker_refuses_ends_the_membership_with_the_remedy(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal)
    a = await Processor(kafka, group, journal, "a", session_timeout=3600).start()
    with pytest.raises(TransportError, match="AGNT5_SESSION_TIMEOUT must lie between"):
        await asyncio.wait_for(a.membership.failed(), 20)  # type: ignore[attr-defined]
    await a.stop(leave=False)


async def test_a_journal_partition_that_lost_records_is_told_of_while_the_others_go_on(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal = fresh("g"), fresh("journal")
    await make_journal(log, journal, 2)
    for partition in (0, 1):
        await log.append(TopicPartition(journal, partition), [Message(b"k", b"v")] * 10)
    await delete_records(kafka, journal, 0, before=5)
    a = await Processor(kafka, group, journal, "a", partitions=2).start()
    await until(lambda: a.sink.errors and len(a.sink.values) == 10)
    ((source, error),) = a.sink.errors
    assert source.partition == 0
    assert "does not hold offset 0" in str(error)
    a.membership.seek(source, 5)
    await until(lambda: a.sink.seen.get(source) == [5, 6, 7, 8, 9])
    await a.stop(leave=True)


async def test_a_broker_that_is_away_at_the_start_or_later_costs_time_but_not_the_membership(
    own_kafka: Any, fresh: Any
) -> None:
    group, journal = fresh("g"), fresh("journal")
    log = KafkaLog(plain(own_kafka.bootstrap))
    await make_journal(log, journal)
    await asyncio.to_thread(own_kafka.stop)
    a = await Processor(own_kafka.bootstrap, group, journal, "a").start()
    assert a.sink.owned == frozenset()
    await asyncio.to_thread(own_kafka.start, tied=True)
    await until(lambda: a.sink.journal_partitions() == ALL, timeout=40)
    events = len(a.sink.events)
    await asyncio.to_thread(own_kafka.kill)
    await asyncio.sleep(1)
    await asyncio.to_thread(own_kafka.start, tied=True)
    for partition in ALL:
        await log.append(TopicPartition(journal, partition), [Message(b"k", b"v")])
    await until(lambda: len(a.sink.seen) == 4, timeout=40)
    assert not any(kind == "revoked" for kind, _ in a.sink.events[events:])
    assert [member.instance_id for member in await a.membership.members()] == ["a"]
    await a.stop(leave=True)
    await log.close()


async def test_a_commit_that_comes_while_the_group_is_rearranged_does_not_have_it_rearranged_again_and_again(
    log: KafkaLog, fresh: Any, kafka: str
) -> None:
    group, journal, topic = fresh("g"), fresh("journal"), fresh("topic")
    await make_journal(log, journal)
    await log.create([spec(topic, 2)], 1)

    async def produce() -> None:
        while True:
            await asyncio.gather(*(log.append(TopicPartition(topic, p), [Message(None, b"event")]) for p in (0, 1)))
            await asyncio.sleep(0.02)

    producing = asyncio.create_task(produce())
    a = await Processor(kafka, group, journal, "a", triggers=[topic], acks_after=0.3).start()
    await until(lambda: a.sink.values)
    b = await Processor(kafka, group, journal, "b", triggers=[topic], acks_after=0.3).start()
    await until(lambda: len(a.sink.journal_partitions()) == len(b.sink.journal_partitions()) == 2)
    thread = a.membership._consumer._thread  # type: ignore[attr-defined]
    thread.post(lambda: thread._ensure_consumer()._coordinator.request_rejoin())  # as for a new topic
    before = len(a.sink.events)
    await asyncio.sleep(6)
    rearranged = len(a.sink.events) - before
    for p in (0, 1):
        seen = [processor.sink.seen for processor in (a, b)]
        await until(lambda: max(len(one.get(TopicPartition(topic, p), ())) for one in seen) > 150)  # noqa: B023
    producing.cancel()
    await a.stop(leave=True)
    await b.stop(leave=True)
    assert 1 <= rearranged <= 2
    committed = [await log.committed(group, TopicPartition(topic, p)) for p in (0, 1)]
    assert min(offset or 0 for offset in committed) > 100, "what was acknowledged meanwhile is committed all the same"


async def test_an_event_with_a_header_whose_name_is_not_utf_8_comes_with_its_neighbours(
    log: KafkaLog, fresh: Any, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, journal, topic = fresh("g"), fresh("journal"), fresh("topic")
    await make_journal(log, journal)
    source = await made(log, topic)
    build = BatchWriter.bytes
    monkeypatch.setattr(BatchWriter, "bytes", lambda batch: bytearray(with_checksum(build(batch), b"n\xffme")))
    await log.append(source, [Message(b"k", b"%d" % n, (("name", b"1"), ("other", None))) for n in range(3)])
    monkeypatch.undo()
    await log.append(source, [Message(b"k", b"3")])
    a = await Processor(kafka, group, journal, "a", triggers=[topic]).start()
    await until(lambda: len(a.sink.values) == 4)
    assert a.sink.seen == {source: [0, 1, 2, 3]}
    assert not any(kind == "revoked" for kind, _ in a.sink.events)
    assert [record.headers for record in await everything(log, source)] == [
        *[(("n?me", b"1"), ("other", None))] * 3, ()
    ]  # fmt: skip
    await a.stop(leave=True)


def with_checksum(batch: bytes, name: bytes) -> bytes:
    """The batch, with this name for the header `name`."""
    data = bytearray(batch).replace(b"name", name)
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


async def test_an_event_that_cannot_be_unpacked_keeps_only_its_own_partition_waiting(
    log: KafkaLog, fresh: Any, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is compressed in a way for which there is no library here, or damaged on the broker's disk."""
    group, journal, packed, plain_ = fresh("g"), fresh("journal"), fresh("packed"), fresh("plain")
    await make_journal(log, journal)
    there = True

    def unpack(partition: Any, record: Any) -> Any:
        if partition.topic == packed and there:
            raise UnsupportedCodecError("no library for it")
        return Record(record.offset, record.timestamp, record.key, record.value, ())

    monkeypatch.setattr(thread, "_record", unpack)
    monkeypatch.setattr(thread, "_LOOK_AGAIN", 0.2)
    for topic in (packed, plain_):
        await made(log, topic)
    await log.append(TopicPartition(packed, 0), [Message(None, b"packed")])
    a = await Processor(kafka, group, journal, "a", triggers=[packed, plain_]).start()
    for n in range(3):
        await log.append(TopicPartition(plain_, 0), [Message(None, b"%d" % n)])
        await asyncio.sleep(0.3)
    await until(lambda: a.sink.values == [b"0", b"1", b"2"])
    assert not any(kind == "revoked" for kind, _ in a.sink.events)
    there = False
    await until(lambda: a.sink.values[-1] == b"packed")
    await a.stop(leave=True)
