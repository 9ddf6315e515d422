"""What could not be taken in is kept whole, listed, and can be sent in again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agnt5 import registry
from agnt5.types import event
from agnt5.workflow import workflow
from agnt5_engine.ports import Refused
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import StepWithdrawn
from agnt5_engine.transport import open_log
from agnt5_engine.transport.base import Log, Message, Record, TopicPartition, TopicSpec
from agnt5_engine.triggers.dead_letters import DeadLetters, Letter
from agnt5_engine.triggers.events import EventTriggers
from agnt5_engine.triggers.redrive import redriven

from .engine import processor, runs_of, until

TOPIC = "agnt5.dead-letters"
ORDERS = TopicPartition("orders", 1)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    log = open_log(f"embedded://{tmp_path}/log", None)
    await log.create([TopicSpec(TOPIC, 3, "delete", None, 100_000)], 1)
    yield log
    await log.close()


def letter(offset: int, value: bytes | None = b"\xff\x00", **more: Any) -> Letter:
    record = Record(offset, 1_700_000_000_123, b"k\xff", value, (("trace", b"t"), ("agnt5-reason", b"users own")))
    return Letter("unbound", "x: Field required", ORDERS, record, **more)


async def test_a_letter_holds_the_original_whole(log: Log) -> None:
    letters = DeadLetters(log, TOPIC, 3)
    put = [letter(5, workflow="order"), letter(6, None)]

    await letters.put(put)

    stored = await letters.list()
    assert sorted([s.letter for s in stored], key=lambda one: one.record.offset) == put
    assert (await letters.find(stored[0].id)).letter == stored[0].letter


async def test_letters_are_listed_oldest_first_page_by_page(log: Log) -> None:
    letters = DeadLetters(log, TOPIC, 3)
    for offset in range(25):
        await letters.put([letter(offset)])

    everything = await letters.list(100)
    assert [s.time for s in everything] == sorted(s.time for s in everything)
    assert {s.letter.record.offset for s in everything} == set(range(25))
    pages, after = [], None
    while page := await letters.list(4, after):
        pages += page
        after = page[-1].id
    assert pages == everything


@pytest.mark.parametrize("letter_id", ["", "9-0", "0-99", "0-0-0", "x", "0-01", "-1-0", "²-0"])
async def test_an_unknown_letter_is_a_lookup_error(log: Log, letter_id: str) -> None:
    with pytest.raises(LookupError):
        await DeadLetters(log, TOPIC, 3).find(letter_id)


async def test_a_value_too_large_for_the_topic_is_fetched_from_its_own(log: Log) -> None:
    await log.create([TopicSpec("orders", 2, "delete", None, 1_000_000)], 1)
    ack = await log.append(ORDERS, [Message(b"k", b"x" * 200_000)])
    letters = DeadLetters(log, TOPIC, 3)

    await letters.put([letter(ack.offset, b"x" * 200_000), letter(999)])

    large = next(s for s in await letters.list() if s.letter.omitted)
    assert large.letter.omitted == 200_000
    assert "200000 bytes" in large.view().value
    assert (await letters.original(large.letter)).value == b"x" * 200_000


async def test_letters_of_other_writers_are_shown_too(log: Log) -> None:
    await log.append(TopicPartition(TOPIC, 0), [Message(b"k", b"hello", (("agnt5-offset", b"many"),))])

    (stored,) = await DeadLetters(log, TOPIC, 3).list()

    shown = stored.view()
    assert (shown.reason, shown.topic, shown.offset, shown.key, shown.value) == ("unknown", TOPIC, 0, "k", "hello")


async def test_what_still_does_not_fit_is_refused_with_the_reason() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    triggers = EventTriggers(registry.workflows())
    with pytest.raises(Refused, match=r"still cannot be taken: workflow order: .*order_id") as refused:
        await redriven(letter(1, b"{}"), letter(1, b"{}").record, triggers, "agnt5.journal")
    assert refused.value.reason == "unbound"


# ------------------------------------------------------------------ in a processor


async def test_bad_events_become_dead_letters_and_start_their_runs_once_the_code_is_right(tmp_path: Path) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> str:
        return order_id

    @workflow(triggers=[event("orders")])
    async def audit(ctx: Any, event: Any) -> Any:
        return event.value

    async with processor(tmp_path) as engine:
        await engine.publish("orders", b'{"order_id": "a"}', None, ())
        await engine.publish("orders", b'{"id": "b"}', b"key-b", (("agnt5-event-id", b"e-b"),))
        await engine.publish("orders", b'{"order_id": "c"}', None, ())
        assert {run.output for run in await runs_of(engine, "order", 2)} == {"a", "c"}
        assert len(await runs_of(engine, "audit", 3)) == 3
        (dead,) = await until(engine.dead_letters)
        assert (dead.reason, dead.topic, dead.key, dead.value) == ("unbound", "orders", "key-b", {"id": "b"})
        assert "workflow order" in dead.detail
        assert "order_id" in dead.detail
        assert await engine.dead_letter(dead.id) == dead
        with pytest.raises(Refused, match="still cannot be taken"):
            await engine.redrive(dead.id)

    registry.clear()

    @workflow(name="order", triggers=[event("orders")])
    async def corrected(ctx: Any, order_id: str | None = None, id: str = "") -> str:
        return order_id or id

    async with processor(tmp_path) as engine:
        (run_id,) = await engine.redrive(dead.id)
        assert (await engine.finished(run_id)).output == "b"
        assert await engine.redrive(dead.id) == [run_id]  # the run that it has
        assert len(await runs_of(engine, "order", 3)) == 3
        assert (await engine.run(run_id)).trigger.model_dump()["event_id"] == "e-b"


async def test_a_redriven_event_that_one_workflow_still_cannot_take_is_a_dead_letter_of_that_workflow(
    tmp_path: Path,
) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> str:
        return order_id

    @workflow(triggers=[event("orders")])
    async def bill(ctx: Any, amount: float) -> float:
        return amount

    async with processor(tmp_path) as engine:
        # As it was put aside for all: nobody could decode it then.
        record = Record(3, 1_700_000_000_000, None, b'{"order_id": "a"}', ())
        await engine.ingest._put([Letter("undecodable", "schema 5 was not there", ORDERS, record)])
        (dead,) = await until(engine.dead_letters)

        (run_id,) = await engine.redrive(dead.id)

        assert (await engine.finished(run_id)).output == "a"
        _, left = await engine.dead_letters()
        assert (left.reason, left.topic, left.partition, left.offset) == ("unbound", "orders", 1, 3)
        assert "workflow bill" in left.detail


async def test_a_letter_of_a_workflow_that_is_no_longer_triggered_is_refused() -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> None: ...

    triggers = EventTriggers(registry.workflows())
    with pytest.raises(Refused, match=r"workflow gone is not triggered by orders"):
        await redriven(letter(1, b"{}", workflow="gone"), letter(1, b"{}").record, triggers, "agnt5.journal")


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (b"garbage", "garbage"),
        (encode(StepWithdrawn("x", "0")), {"record": "StepWithdrawn", "run_id": "x", "path": "0"}),
    ],
    ids=["garbage", "of another topic"],
)
async def test_a_journal_record_that_cannot_be_read_is_put_aside_and_the_partition_goes_on(
    tmp_path: Path, value: bytes, seen: object
) -> None:
    @workflow(triggers=[event("orders")])
    async def order(ctx: Any, order_id: str) -> str:
        return order_id

    async with processor(tmp_path, partitions=1) as engine:
        await engine.log.append(TopicPartition("agnt5.journal", 0), [Message(b"x", value)])
        await engine.publish("orders", b'{"order_id": "a"}', None, ())
        await runs_of(engine, "order", 1)
        (dead,) = await until(engine.dead_letters)
        assert (dead.reason, dead.topic, dead.value) == ("undecodable", "agnt5.journal", seen)
        with pytest.raises(Refused, match="still cannot be decoded"):
            await engine.redrive(dead.id)


async def test_an_event_published_twice_under_one_id_starts_one_run_across_a_restart(tmp_path: Path) -> None:
    @workflow(triggers=[event("orders", session="customer")])
    async def order(ctx: Any, order_id: str) -> str:
        return order_id

    async with processor(tmp_path) as engine:
        for n in range(40):
            body = b'{"order_id": "o-%d", "customer": "c-%d"}' % (n, n // 2 % 3)
            await engine.publish("orders", body, None, (("agnt5-event-id", b"e-%d" % (n // 2)),))
        runs = await runs_of(engine, "order", 20)
        assert {run.session_id for run in runs} == {"c-0", "c-1", "c-2"}

    async with processor(tmp_path) as engine:
        await engine.publish("orders", b'{"order_id": "last", "customer": "c-0"}', None, ())
        runs = await runs_of(engine, "order", 21)
        seen = [run.trigger.model_dump().get("event_id") for run in runs]
        assert len(runs) == len(set(seen))
