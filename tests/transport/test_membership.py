"""What the engine relies on of a membership: what it is given, in which order, and where it goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agnt5_engine.transport.base import Batch, Log, Message, TopicPartition
from agnt5_engine.transport.membership import FaustMembership
from tests.transport.clusters import Cluster, spec
from tests.transport.sinks import NotingSink

Fresh = Callable[[str], str]
PARTITIONS = 3


class Group:
    """One consumer group of a test: its topics, and memberships of it."""

    def __init__(self, cluster: Cluster, log: Log, fresh: Fresh) -> None:
        self.cluster = cluster
        self.log = log
        self.name = fresh("group")
        self.journal, self.events = fresh("journal"), fresh("events")

    async def create(self) -> None:
        await self.log.create([spec(self.journal, PARTITIONS), spec(self.events, 2)], 1)

    def journal_partition(self, number: int) -> TopicPartition:
        return TopicPartition(self.journal, number)

    def event_partition(self, number: int) -> TopicPartition:
        return TopicPartition(self.events, number)

    async def append(self, target: TopicPartition, count: int) -> None:
        await self.log.append(target, [Message(b"k", b"%d" % n) for n in range(count)])

    @asynccontextmanager
    async def joined(self, sink: NotingSink) -> AsyncIterator[FaustMembership]:
        membership = self.cluster.join(self.name, self.journal, PARTITIONS, [self.events], sink)
        assert isinstance(membership, FaustMembership)
        sink.membership = membership
        await membership.start()
        try:
            await sink.until(lambda: bool(sink.assignments))
            yield membership
        finally:
            await membership.stop(leave=True)


@pytest.fixture
async def group(cluster: Cluster, log: Log, fresh: Fresh) -> Group:
    group = Group(cluster, log, fresh)
    await group.create()
    return group


async def test_everything_is_assigned_and_the_only_member_is_named(group: Group) -> None:
    sink = NotingSink(group.journal)
    async with group.joined(sink) as membership:
        expected = {group.journal_partition(n) for n in range(PARTITIONS)} | {group.event_partition(n) for n in (0, 1)}
        assert sink.assignments == [expected]
        (member,) = await membership.members()
        assert sorted(member.partitions) == [0, 1, 2]
        assert member.url == group.cluster.advertised_url
    assert sink.revocations == [expected], "stopping takes everything from the sink, once"


async def test_batches_come_in_order_one_at_a_time_and_none_is_missing(group: Group) -> None:
    sink = NotingSink(group.journal)
    target = group.journal_partition(1)
    await group.append(target, 50)
    async with group.joined(sink):
        for _ in range(100):
            await group.append(target, 30)
        await sink.until(lambda: sink.next_offset.get(target) == 3050)
    assert sink.offsets(target) == list(range(3050))


async def test_a_journal_partition_delivers_nothing_before_it_is_sought_and_then_from_there(group: Group) -> None:
    sink = NotingSink(group.journal, seek=False)
    target, other = group.journal_partition(0), group.journal_partition(1)
    await group.append(target, 40)
    await group.append(other, 40)
    async with group.joined(sink) as membership:
        await group.append(group.event_partition(0), 1)
        await sink.until(lambda: bool(sink.offsets(group.event_partition(0))))
        assert sink.offsets(target) == []
        membership.seek(target, 25)
        await sink.until(lambda: sink.next_offset.get(target) == 40)
        await group.append(target, 2)
        await sink.until(lambda: sink.next_offset.get(target) == 42)
        assert sink.offsets(target) == list(range(25, 42))
        assert sink.offsets(other) == []


async def test_a_seek_to_the_end_waits_for_what_comes(group: Group) -> None:
    sink = NotingSink(group.journal, seek=False)
    target = group.journal_partition(2)
    await group.append(target, 10)
    async with group.joined(sink) as membership:
        membership.seek(target, 10)
        await group.append(target, 3)
        await sink.until(lambda: sink.next_offset.get(target) == 13)
        assert sink.offsets(target) == [10, 11, 12]


async def test_a_seek_back_delivers_again(group: Group) -> None:
    sink = NotingSink(group.journal)
    target = group.journal_partition(0)
    await group.append(target, 20)
    async with group.joined(sink) as membership:
        await sink.until(lambda: sink.next_offset.get(target) == 20)
        membership.seek(target, 5)
        await sink.until(lambda: len(sink.offsets(target)) == 35)
    assert sink.offsets(target) == [*range(20), *range(5, 20)]


async def test_a_paused_partition_rests_and_goes_on_where_it_was(group: Group) -> None:
    sink = NotingSink(group.journal)
    target, other = group.event_partition(0), group.event_partition(1)
    async with group.joined(sink) as membership:
        for n in range(10):
            await group.append(target, 5)
            await sink.until(lambda: len(sink.offsets(target)) == 10 * n + 5)  # noqa: B023
            membership.pause(target)
            await group.append(target, 5)
            await group.append(other, 1)
            await sink.until(lambda: len(sink.offsets(other)) == n + 1)  # noqa: B023
            assert len(sink.offsets(target)) == 10 * n + 5
            membership.resume(target)
            await sink.until(lambda: len(sink.offsets(target)) == 10 * n + 10)  # noqa: B023
    assert sink.offsets(target) == list(range(100))


async def test_pausing_at_any_moment_neither_loses_nor_repeats(group: Group) -> None:
    sink = NotingSink(group.journal)
    target = group.event_partition(0)
    async with group.joined(sink) as membership:

        async def flicker() -> None:
            while True:
                membership.pause(target)
                await asyncio.sleep(random.choice((0, 0, 0.001)))
                membership.resume(target)
                await asyncio.sleep(random.choice((0, 0, 0.001)))

        flickering = asyncio.create_task(flicker())
        for _ in range(150):
            await group.append(target, 20)
        await sink.until(lambda: sink.next_offset.get(target) == 3000)
        flickering.cancel()
    assert sink.offsets(target) == list(range(3000))


class KnowingSink(NotingSink):
    """Writes to a journal partition too, and tells the membership what it knows from its acks, as an owner does."""

    def __init__(self, group: Group, target: TopicPartition) -> None:
        super().__init__(group.journal)
        self.group = group
        self.target = target
        self.applied: list[int] = []
        self.acked_early: set[int] = set()

    async def write(self, count: int) -> None:
        ack = await self.group.log.append(self.target, [Message(b"k", b"ours")] * count)
        self.acked_early.update(range(ack.offset, ack.offset + count))
        self._apply()
        assert self.membership is not None
        if self.acked_early:
            self.membership.missed(self.target)
        else:
            self.membership.known(self.target, len(self.applied))

    def _apply(self) -> None:
        while len(self.applied) in self.acked_early:
            self.acked_early.discard(len(self.applied))
            self.applied.append(len(self.applied))

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        await super().records(source, batch)
        if source == self.target:
            for record in batch.records:
                if record.offset >= len(self.applied):
                    assert record.offset == len(self.applied), "what others wrote was passed over"
                    self.applied.append(record.offset)
                    self._apply()


async def test_what_others_write_to_a_partition_that_is_known_from_acks_is_never_passed_over(group: Group) -> None:
    target = group.journal_partition(1)
    sink = KnowingSink(group, target)
    async with group.joined(sink):

        async def ours() -> None:
            for _ in range(200):
                await sink.write(random.choice((1, 1, 5)))
                await asyncio.sleep(random.choice((0, 0, 0.001, 0.03)))

        async def theirs() -> None:
            for _ in range(40):
                await group.append(target, random.choice((1, 3)))
                await asyncio.sleep(random.choice((0, 0.005, 0.03, 0.1)))

        await asyncio.gather(ours(), theirs())
        _, end = await group.log.bounds(target)
        await sink.until(lambda: len(sink.applied) == end)


async def test_what_is_known_from_acks_is_hardly_brought_and_what_others_write_then_is_brought_soon(
    group: Group,
) -> None:
    target = group.journal_partition(0)
    sink = KnowingSink(group, target)
    async with group.joined(sink):
        await group.append(target, 1)
        await sink.until(lambda: len(sink.applied) == 1)
        for _ in range(300):
            await sink.write(3)
        assert len(sink.applied) == 901
        assert len(sink.offsets(target)) < 90, "own records were brought again"
        for _ in range(3):
            await group.append(target, 1)
            count = len(sink.applied)
            await asyncio.wait_for(sink.until(lambda: len(sink.applied) == count + 1), 10)  # noqa: B023


async def test_a_partition_whose_batch_takes_long_does_not_hold_up_the_others(group: Group) -> None:
    sink = NotingSink(group.journal)
    slow, quick = group.journal_partition(0), group.journal_partition(1)
    sink.gates[slow] = asyncio.Event()
    async with group.joined(sink):
        await group.append(slow, 1)
        await sink.until(lambda: slow in sink.inside)
        await group.append(slow, 1)
        for n in range(20):
            await group.append(quick, 1)
            await sink.until(lambda: len(sink.offsets(quick)) == n + 1)  # noqa: B023
        assert sink.offsets(slow) == []
        sink.gates[slow].set()
        await sink.until(lambda: len(sink.offsets(slow)) == 2)
    assert sink.offsets(slow) == [0, 1]


async def test_a_trigger_goes_on_after_what_was_acknowledged_and_not_before(group: Group) -> None:
    target, unacked = group.event_partition(0), group.event_partition(1)
    await group.append(target, 30)
    await group.append(unacked, 30)
    sink = NotingSink(group.journal)
    async with group.joined(sink) as membership:
        await sink.until(lambda: sink.next_offset.get(target) == sink.next_offset.get(unacked) == 30)
        membership.acked(target, 12)
    assert await group.log.committed(group.name, target) == 12
    assert await group.log.committed(group.name, unacked) is None
    sink = NotingSink(group.journal)
    async with group.joined(sink):
        await sink.until(lambda: sink.next_offset.get(target) == sink.next_offset.get(unacked) == 30)
    assert sink.offsets(target) == list(range(12, 30))
    assert sink.offsets(unacked) == list(range(30)), "what was never acknowledged comes again"


async def test_acknowledged_offsets_are_committed_while_it_runs(group: Group) -> None:
    target = group.event_partition(0)
    sink = NotingSink(group.journal)
    async with group.joined(sink) as membership:
        await group.append(target, 10)
        await sink.until(lambda: sink.next_offset.get(target) == 10)
        membership.acked(target, 10)
        while await group.log.committed(group.name, target) != 10:
            await asyncio.sleep(0.05)


async def test_what_is_acknowledged_while_the_partitions_are_taken_away_is_committed(group: Group) -> None:
    target = group.event_partition(1)
    sink = NotingSink(group.journal)
    async with group.joined(sink) as membership:
        await group.append(target, 10)
        await sink.until(lambda: sink.next_offset.get(target) == 10)
        sink.on_revoke = lambda: membership.acked(target, 7)
    assert await group.log.committed(group.name, target) == 7


async def test_the_journals_offsets_are_never_committed_by_the_membership(group: Group) -> None:
    target = group.journal_partition(0)
    sink = NotingSink(group.journal)
    async with group.joined(sink) as membership:
        await group.append(target, 10)
        await sink.until(lambda: sink.next_offset.get(target) == 10)
        with pytest.raises(ValueError, match="checkpoints"):
            membership.acked(target, 10)
    assert await group.log.committed(group.name, target) is None


async def test_a_trigger_sought_on_assignment_starts_there(group: Group) -> None:
    target = group.event_partition(0)
    await group.append(target, 20)

    class Pinning(NotingSink):
        async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
            assert self.membership is not None
            self.membership.seek(target, 15)
            self.membership.acked(target, 15)
            await super().assigned(partitions)

    sink = Pinning(group.journal)
    async with group.joined(sink):
        await sink.until(lambda: sink.next_offset.get(target) == 20)
    assert sink.offsets(target) == list(range(15, 20))
    assert await group.log.committed(group.name, target) == 15


async def test_a_batch_still_being_taken_at_the_stop_is_cancelled_after_the_sink_was_told(group: Group) -> None:
    target = group.journal_partition(0)
    sink = NotingSink(group.journal)
    sink.gates[target] = asyncio.Event()  # never opened
    inside: list[bool] = []
    sink.on_revoke = lambda: inside.append(target in sink.inside)
    async with group.joined(sink):
        await group.append(target, 1)
        await sink.until(lambda: target in sink.inside)
    assert inside == [True]
    assert sink.inside == set()


async def test_an_error_of_the_sink_ends_the_membership_and_is_told(group: Group) -> None:
    target = group.journal_partition(0)
    sink = NotingSink(group.journal)

    def fail(source: TopicPartition) -> None:
        raise ZeroDivisionError("a fault in the engine")

    sink.before_records = fail
    async with group.joined(sink) as membership:
        await group.append(target, 1)
        with pytest.raises(ZeroDivisionError, match="a fault in the engine"):
            await membership.failed()
    assert len(sink.revocations) == 1
