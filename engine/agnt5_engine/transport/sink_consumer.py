"""The consumer that hands whole batches to the engine: a mixin for a Faust consumer of any transport.

Topics of the wiring (journal and triggers) go to the sink, one batch of a partition at a time; any other topic is
yielded to Faust as usual. Faust commits trigger offsets, as far as the engine has acknowledged them; journal offsets
it never commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import structlog
from faust.transport.consumer import Consumer
from faust.types import TP

from agnt5_engine.transport.base import Batch, Member, TopicPartition
from agnt5_engine.transport.faust_app import Wiring

log = structlog.stdlib.get_logger(__name__)


class Lane:
    """One assigned partition on its way to the sink."""

    __slots__ = ("acked", "delivery", "epoch", "held", "paused", "polled", "position")

    def __init__(self, *, held: bool) -> None:
        self.position: int | None = None  # None: wherever the transport starts
        self.acked: int | None = None
        self.held = held  # nothing is delivered before the engine has said from where
        self.paused = False
        self.epoch = 0  # moves on when what is being fetched must not be delivered any more
        self.polled = 0
        self.delivery: asyncio.Task[None] | None = None


class SinkConsumer(Consumer):  # type: ignore[misc]
    """Put it before the transport's own consumer class, and define `client_seek`, `to_batch` and `group_members`.

    Its `_getmany` clears `turned`, and returns, with nothing if need be, as soon as that is set again.
    """

    sink_failure: BaseException | None = None
    """What the sink raised: the engine's own error, which a new start would only repeat."""
    leave_on_stop = False
    """Whether the group is to forget this member when it stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wiring: Wiring = self.app.wiring
        self.lanes: dict[TP, Lane] = {}
        self.turned = asyncio.Event()

    # -- for the transport to define

    def client_seek(self, source: TP, offset: int) -> None:
        """Fetch `source` from `offset` on. Called on the engine's loop; must take effect before a later `_getmany`."""
        raise NotImplementedError

    def to_batch(self, source: TP, fetched: Any) -> Batch:
        """What `_getmany` returned for one partition."""
        raise NotImplementedError

    async def group_members(self) -> list[Member]:
        raise NotImplementedError

    # -- what the engine asks (Membership)

    def sink_seek(self, source: TopicPartition, offset: int) -> None:
        lane = self.lanes.get(TP(*source))
        if lane is None:
            return  # lost meanwhile
        lane.position = offset
        lane.held = False
        lane.epoch += 1
        self.client_seek(TP(*source), offset)
        self.turned.set()

    def sink_pause(self, source: TopicPartition) -> None:
        lane = self.lanes.get(TP(*source))
        if lane is not None and not lane.paused:
            lane.paused = True
            lane.epoch += 1

    def sink_resume(self, source: TopicPartition) -> None:
        lane = self.lanes.get(TP(*source))
        if lane is not None:
            lane.paused = False
            self.turned.set()

    def sink_known(self, source: TopicPartition, next_offset: int) -> None:
        """Nothing before `next_offset` need be delivered. A transport may make use of that."""

    def sink_missed(self, source: TopicPartition) -> None:
        """What comes next is not known after all."""

    def sink_acked(self, source: TopicPartition, next_offset: int) -> None:
        if source.topic == self.wiring.journal:
            raise ValueError(f"{source.topic}: the journal's offsets go into the checkpoints, they are not acked")
        lane = self.lanes.get(TP(*source))
        if lane is not None:
            lane.acked = next_offset

    async def sink_pin(self, positions: Mapping[TopicPartition, int]) -> None:
        """A transport with other members commits for their partitions too."""
        for source, offset in positions.items():
            self.sink_acked(source, offset)
        await self.commit()

    # -- fetching and delivering

    async def subscribe(self, topics: Iterable[str]) -> None:
        await super().subscribe(self.wiring.topics.union(topics))

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        while not self.should_stop:
            if not self.flow_active:
                await self.wait(self.can_resume_flow)
                continue
            self.turned.clear()
            wanted = self._wanted()
            if not wanted:
                await self.turned.wait()
                continue
            fetched: Mapping[TP, Any] = await self._getmany(wanted, timeout)
            others: dict[TP, Any] = {}
            for source, records in fetched.items():
                lane = self.lanes.get(source)
                if lane is not None:
                    self._deliver(source, lane, records)
                elif source.topic not in self.wiring.topics:
                    others[source] = records
            if others:
                generation = self.app.consumer_generation_id
                for source, record in self.scheduler.iterate(others):
                    if not self.flow_active or generation != self.app.consumer_generation_id:
                        break
                    yield source, self._to_message(source, record)
            await asyncio.sleep(0)  # lets a sink that takes its batch at once be ready for the next

    def _wanted(self) -> set[TP]:
        """The partitions to fetch now."""
        wanted: set[TP] = set()
        lanes = self.lanes
        for source in self._get_active_partitions():
            lane = lanes.get(source)
            if lane is None:
                if source.topic not in self.wiring.topics:
                    wanted.add(source)
            elif not (lane.held or lane.paused or lane.delivery is not None):
                lane.polled = lane.epoch
                wanted.add(source)
        return wanted

    def _deliver(self, source: TP, lane: Lane, records: Any) -> None:
        batch = self.to_batch(source, records)
        if lane.polled != lane.epoch or not self.flow_active:  # sought, paused or revoked while it was fetched
            if not lane.held:
                position = lane.position if lane.position is not None else _first(batch)
                lane.position = position
                self.client_seek(source, position)
            return
        lane.position = batch.next_offset
        if batch.records:
            lane.delivery = asyncio.get_running_loop().create_task(self._offer(source, lane, batch))

    async def _offer(self, source: TP, lane: Lane, batch: Batch) -> None:
        try:
            await self.wiring.sink.records(TopicPartition(*source), batch)
        except Exception as error:
            await self._sink_failed(error)
        finally:
            lane.delivery = None
            self.turned.set()

    async def _sink_failed(self, error: Exception) -> None:
        if self.sink_failure is None:
            self.sink_failure = error
        await self.crash(error)

    # -- coming and going of partitions

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        ours = {source for source in assigned if source.topic in self.wiring.topics}
        await self.withdraw({source for source in self.lanes if source not in ours})
        for source in ours:
            if source not in self.lanes:
                self.lanes[source] = Lane(held=True)
        await super().on_partitions_assigned(assigned, generation_id)
        if self.app.should_stop:
            return
        try:
            await self.wiring.sink.assigned(frozenset(TopicPartition(*source) for source in ours))
        except Exception as error:
            await self._sink_failed(error)
            return
        for source, lane in self.lanes.items():
            if source.topic != self.wiring.journal:
                lane.held = False  # a trigger the engine did not seek goes on where the group stands
        if len(ours) < len(assigned):
            await self.perform_seek()
        self.resume_partitions(assigned)
        self.app.flow_control.resume()
        self.resume_flow()
        await self.app._fetcher.maybe_start()
        self.app.on_rebalance_end()
        self.turned.set()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.withdraw(revoked)
        await super().on_partitions_revoked(revoked)

    async def withdraw(self, revoked: Iterable[TP] | None = None) -> None:
        """Take partitions (None: all) from the sink: deliver no more, let it save, commit what it acknowledged."""
        chosen = self.lanes if revoked is None else self.lanes.keys() & set(revoked)
        leaving = {source: self.lanes[source] for source in chosen}
        if not leaving:
            return
        for lane in leaving.values():
            lane.held = True
            lane.epoch += 1
        try:
            await self.wiring.sink.revoked(frozenset(TopicPartition(*source) for source in leaving))
        except Exception as error:
            self.sink_failure = self.sink_failure or error
            log.exception("revoke_failed", partitions=sorted(map(tuple, leaving)))
        deliveries = [lane.delivery for lane in leaving.values() if lane.delivery is not None]
        for delivery in deliveries:
            delivery.cancel()
        if deliveries:
            await asyncio.wait(deliveries)
        if not await self.commit():
            await self.commit()  # the first may have only waited for one that was under way
        for source in leaving:
            self.lanes.pop(source, None)

    # -- committing

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for source, lane in self.lanes.items():
            if (
                lane.acked is not None
                and lane.acked != self._committed_offset[source]
                and (topics is None or source in topics or source.topic in topics)
            ):
                yield source

    def _new_offset(self, tp: TP) -> int | None:
        lane = self.lanes.get(tp)
        if lane is not None:
            return lane.acked
        offset: int | None = super()._new_offset(tp)
        return offset

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        before = {source: self._committed_offset[source] for source in offsets}
        done: bool = await super()._commit_offsets(offsets, start_new_transaction)
        if not done:
            self._committed_offset.update(before)  # stock Faust takes a failed commit for done
        return done

    # -- what stock Faust would do behind the engine's back

    async def perform_seek(self) -> None:
        """Stock Faust goes back to the committed offsets of every topic; the engine's keep their places."""
        await super().perform_seek()
        for source, lane in self.lanes.items():
            if lane.position is not None:
                self.client_seek(source, lane.position)

    async def verify_all_partitions_active(self) -> None:
        """Stock Faust complains of partitions whose messages it has not seen pass through its streams."""


def _first(batch: Batch) -> int:
    return batch.records[0].offset if batch.records else batch.next_offset
