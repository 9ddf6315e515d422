"""What owners send to queues, in which order, and what they write down of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agnt5.function import Function, function
from agnt5.replay.protocol import StepAsk
from agnt5_engine.queues.dispatch import Dispatcher
from agnt5_engine.records.avro import decode
from agnt5_engine.records.journal import StepCommand, StepDispatched, StepWithdrawn
from agnt5_engine.records.routing import partition_of
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.settings import Settings
from agnt5_engine.transport.base import Ack, BadTopicError, RetriableError, TopicInfo
from tests.triggers.engine import until


@function(name="dispatch.pooled", queue="pool")
async def pooled(n: int) -> int:
    return n


class Topics:
    """A log that takes everything and remembers it."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.partitions = 1
        self.answering = asyncio.Event()
        self.answering.set()
        self.away: set[int] = set()

    async def topics(self, names: Any) -> dict[str, TopicInfo]:
        return {name: TopicInfo(name, self.partitions, {}) for name in names}

    async def append(self, target: Any, messages: Any) -> Ack:
        if target.partition >= self.partitions:
            raise BadTopicError(f"there is no {target}")
        if target.partition in self.away:
            raise RetriableError(f"{target} has no leader")
        self.records += [decode(message.value) for message in messages]
        await self.answering.wait()
        return Ack(0, 0)


class Owner:
    def __init__(self) -> None:
        self.closed = False
        self.claim = 3
        self.written: list[Any] = []
        self.state = SimpleNamespace(run=lambda run_id: None, now=0)

    def append(self, run_id: str, record: Any) -> None:
        self.written.append(record)


def made(broker: str = "kafka://localhost:9092") -> tuple[Dispatcher, Topics, Any, Run, Pending]:
    topics = Topics()
    functions: dict[str, Function[Any]] = {"dispatch.pooled": pooled}
    dispatcher = Dispatcher(topics, Settings(broker=broker), functions.get)  # type: ignore[arg-type]
    run = Run("run", "run", "flow", b"{}", 0)
    ask = StepAsk("0", "dispatch.pooled", "dispatch.pooled", b'{"args":[1],"kwargs":{}}')
    run.pending["0"] = pending = Pending(ask, 0)
    return dispatcher, topics, Owner(), run, pending


async def test_a_step_is_sent_once_and_the_journal_says_so() -> None:
    dispatcher, topics, owner, run, pending = made()

    assert dispatcher.dispatch(owner, run, pending, "0")
    assert dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)

    assert owner.written == [StepDispatched("run", "0", 0, 3)]
    assert [type(record) for record in topics.records] == [StepCommand]
    pending.dispatched = True
    assert dispatcher.dispatch(owner, run, pending, "0")
    await dispatcher.close()
    assert len(topics.records) == 1


async def test_a_step_that_waited_longer_for_its_pool_than_the_topic_keeps_it_is_sent_again_by_the_next_owner() -> None:
    dispatcher, topics, owner, run, pending = made()
    pending.dispatched = True
    day = 86_400_000
    owner.state.now = 14 * day
    dispatcher.dispatch(owner, run, pending, "0")
    owner.state.now = 14 * day + 1
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)

    assert [type(record) for record in topics.records] == [StepWithdrawn, StepCommand]
    await dispatcher.close()


async def test_a_step_that_its_worker_leaves_before_the_broker_has_answered_is_sent_again() -> None:
    dispatcher, topics, owner, run, pending = made()
    topics.answering.clear()
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: topics.records)

    assert dispatcher.dispatch(owner, run, pending, "0")  # the journal says that a worker read it, and let go of it
    topics.answering.set()
    await until(lambda: len(owner.written) == 2)

    assert [type(record) for record in topics.records] == [StepCommand, StepCommand]
    await dispatcher.close()


@pytest.mark.parametrize("on_its_way", [False, True])
async def test_a_step_whose_owner_closes_before_the_broker_has_answered_is_the_next_owners_to_send(
    on_its_way: bool,
) -> None:
    dispatcher, topics, owner, run, pending = made()
    topics.answering.clear()
    dispatcher.dispatch(owner, run, pending, "0")
    if on_its_way:
        await until(lambda: topics.records)
    owner.closed = True
    successor = Owner()

    dispatcher.dispatch(successor, run, pending, "0")  # type: ignore[arg-type]
    topics.answering.set()
    await until(lambda: successor.written)

    assert successor.written == [StepDispatched("run", "0", 0, 3)]
    assert owner.written == []
    await dispatcher.close()


async def test_a_step_is_withdrawn_though_the_journal_does_not_know_yet_that_it_was_sent() -> None:
    dispatcher, topics, owner, run, pending = made()
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)  # durable, but not applied: `pending.dispatched` is still False

    dispatcher.withdraw(owner, "run", "0", pending)
    await until(lambda: len(topics.records) == 2)

    assert topics.records[1] == StepWithdrawn("run", "0")
    await dispatcher.close()


async def test_a_step_that_is_withdrawn_and_asked_for_anew_while_it_waits_to_be_sent_is_sent_last() -> None:
    dispatcher, topics, owner, run, pending = made()
    dispatcher.dispatch(owner, run, pending, "0")
    dispatcher.withdraw(owner, "run", "0", pending)  # its run failed
    run.attempt = 1  # and was retried
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)

    assert [type(record) for record in topics.records] == [StepCommand, StepWithdrawn, StepCommand]
    assert topics.records[-1].run_attempt == 1
    await dispatcher.close()


async def test_steps_find_their_pool_when_its_topic_was_made_anew_with_other_partitions() -> None:
    dispatcher, topics, owner, run, pending = made()
    topics.partitions = 7
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)

    topics.partitions = 1
    pending.attempt = 1
    dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: len(owner.written) == 2)
    await dispatcher.close()


async def test_a_step_is_not_sent_again_because_another_partition_of_its_queue_has_no_leader() -> None:
    dispatcher, topics, owner, run, pending = made()
    topics.partitions = 2
    topics.away = {1}
    waits = next(f"r{n}" for n in range(99) if partition_of(f"r{n}", 2) == 1)
    goes = next(f"r{n}" for n in range(99) if partition_of(f"r{n}", 2) == 0)
    for run.run_id in (goes, waits):
        dispatcher.dispatch(owner, run, pending, "0")
    await until(lambda: owner.written)
    await asyncio.sleep(0.5)
    topics.away.clear()
    await until(lambda: len(owner.written) > 1)

    assert [record.run_id for record in topics.records] == [goes, waits]
    assert [record.run_id for record in owner.written] == [goes, waits]
    await dispatcher.close()


async def test_on_the_embedded_log_the_processor_executes_the_step_itself() -> None:
    dispatcher, topics, owner, run, pending = made("embedded://somewhere")

    assert not dispatcher.dispatch(owner, run, pending, "0")
    dispatcher.withdraw(owner, "run", "0", pending)
    await dispatcher.close()
    assert topics.records == []
