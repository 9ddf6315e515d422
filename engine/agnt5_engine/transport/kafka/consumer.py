"""Faust's consumer over Kafka, on the engine's loop: what arrived waits here until the sink takes it.

Fetching, heartbeats and the group's protocol run in Faust's consumer thread (thread.py), so a busy engine stays a
member. A rebalance of Kafka's takes all partitions from every member for a moment; those that come back to us in the
next generation were nobody else's meanwhile, and the sink does not hear of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import structlog
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from agnt5_engine.transport.base import (
    BadTopicError,
    Batch,
    Member,
    OffsetGoneError,
    RetriableError,
    TopicPartition,
    TransportError,
)
from agnt5_engine.transport.faust_app import EngineApp, NoProducer, Wiring
from agnt5_engine.transport.kafka.assignor import Assignor
from agnt5_engine.transport.kafka.members import group_members
from agnt5_engine.transport.kafka.rests import Rests
from agnt5_engine.transport.kafka.thread import Arrival, Listener, Thread
from agnt5_engine.transport.kafka.topics import describe
from agnt5_engine.transport.kafka.wire import Wire
from agnt5_engine.transport.membership import FaustMembership
from agnt5_engine.transport.sink_consumer import SinkConsumer

FAUST_URL = "agnt5-kafka://"
"""The scheme of the entry point; the servers themselves travel in the wiring."""

_FULL = 2
"""Fetched pieces (of at most 1 MiB) of a partition that may wait for the sink before no more is fetched."""
_COMMIT_TIMEOUT = 5.0
_PATIENCE = 3.0

log = structlog.stdlib.get_logger(__name__)


class KafkaConsumer(SinkConsumer, driver.Consumer):  # type: ignore[misc]
    """One member of the group."""

    RebalanceListener: ClassVar[type[Listener]] = Listener
    _thread: Thread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arrived: dict[TP, deque[Batch]] = {}
        self._flowing: set[TP] = set()  # what Kafka is being asked for
        self._turns: dict[TP, int] = {}  # how often each was sought: what was fetched before is dropped
        self._rests = Rests(self._rest, self._wake)
        self._rebalancing = asyncio.Lock()
        self._wire: Wire | None = None

    def _new_consumer_thread(self) -> Thread:
        # The same kind of loop as the engine's; Faust would always take asyncio's own.
        thread = Thread(self, loop=self.loop, beacon=self.beacon, thread_loop=type(self.loop)())
        thread._close_thread_loop_on_stop = True
        return thread

    async def on_start(self) -> None:
        """Find out whether the cluster can be used before joining; Faust's thread could not say why it cannot."""
        await super().on_start()
        wiring = self.wiring
        wire = Wire(wiring.settings.kafka_options(), wiring.instance_id, patience=_PATIENCE)
        try:
            await self._check_journal(wire)
        except BaseException:
            await wire.close()
            self._thread.thread_loop.close()  # the thread that would close it is never started
            raise
        self._wire = wire

    async def _check_journal(self, wire: Wire) -> None:
        wiring = self.wiring
        found = await describe(wire, [wiring.journal])
        if wiring.journal not in found:
            raise BadTopicError(f"the journal {wiring.journal!r} does not exist; make it with `agnt5 topics apply`")
        partitions = found[wiring.journal].partitions
        if partitions != wiring.partitions:
            raise BadTopicError(
                f"the journal {wiring.journal!r} has {partitions} partitions, AGNT5_PARTITIONS says "
                f"{wiring.partitions}; their number is fixed once the journal exists, so set "
                f"AGNT5_PARTITIONS={partitions}"
            )

    async def on_stop(self) -> None:
        self._rests.clear()
        await super().on_stop()
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close()

    async def group_members(self) -> list[Member]:
        if self._wire is None:
            return []
        return await group_members(self._wire, self.app.conf.id, self.wiring.journal)

    # -- fetching: the thread pushes, the engine takes

    def arrived(self, arrivals: list[Arrival]) -> None:
        """Called on the engine's loop by the thread."""
        for source, turn, batch in arrivals:
            if self._turns.get(source, 0) == turn and source in self._arrived:
                waiting = self._arrived[source]
                waiting.append(batch)
                if len(waiting) >= _FULL:
                    self._hold(source)
        self.turned.set()

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, Any]:
        self.turned.clear()
        found: dict[TP, Any] = {}
        for source in self.assignment() if active_partitions is None else active_partitions:
            waiting = self._arrived.setdefault(source, deque())
            if waiting:
                batch = _joined(waiting) if len(waiting) > 1 else waiting[0]
                found[source] = batch if source.topic in self.wiring.topics else batch.records
                waiting.clear()
            if source not in self._flowing and source not in self._rests:
                self._flowing.add(source)
                self._thread.post(self._thread.let_flow, source)
        if not found:
            await self.turned.wait()
        return found

    def _hold(self, source: TP) -> None:
        self._flowing.discard(source)
        self._thread.post(self._thread.hold, source)

    def to_batch(self, source: TP, fetched: Batch) -> Batch:
        return fetched

    def sink_known(self, source: TopicPartition, next_offset: int) -> None:
        tp = TP(*source)
        lane = self.lanes.get(tp)
        if lane is None or lane.held or lane.position is None:
            return
        if lane.delivery is None and not self._arrived.get(tp):
            lane.position = max(lane.position, next_offset)
            self._rests.extend(tp)

    def sink_missed(self, source: TopicPartition) -> None:
        self._rests.end(TP(*source))

    def _rest(self, source: TP) -> None:
        """Have nothing of it fetched; what is being fetched is dropped."""
        self._flowing.discard(source)
        self._turns[source] = self._turns.get(source, 0) + 1
        self._thread.post(self._thread.rest, source)

    def _wake(self, source: TP) -> None:
        lane = self.lanes.get(source)
        if lane is not None and lane.position is not None:
            self.client_seek(source, lane.position)
            self.turned.set()

    def client_seek(self, source: TP, offset: int) -> None:
        self._rests.forget(source)
        turn = self._turns[source] = self._turns.get(source, 0) + 1
        self._arrived[source] = deque()
        self._thread.post(self._thread.seek_now, source, offset, turn)

    def unreadable(self, source: TP, error: OffsetGoneError) -> None:
        """The journal does not hold what comes next: called on the engine's loop."""
        lane = self.lanes.get(source)
        if lane is not None and not lane.held:
            lane.held = True
            lane.epoch += 1
            self._flowing.discard(source)
            try:
                self.wiring.sink.unreadable(TopicPartition(*source), error)
            except Exception as failure:
                self.gone(failure)

    def gone(self, error: Exception) -> None:
        """A new start would not help: called on the engine's loop."""
        self.sink_failure = self.sink_failure or error
        self.add_future(self.crash(error))

    # -- rebalances

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop delivering and commit what was acknowledged. What is really lost shows when the group is settled."""
        async with self._rebalancing:
            self.app.on_rebalance_start()
            if self.lanes:
                await self.commit()
            await Consumer.on_partitions_revoked(self, revoked)

    async def settled(self, assigned: set[TP], generation: int, *, unbroken: bool) -> None:
        """The group's new generation. `unbroken`: nobody can have owned our partitions since the last one."""
        async with self._rebalancing:
            if not unbroken:
                await self.withdraw()
            self._thread.post(self._thread.withdrawn, generation)
            self._arrived, self._flowing, self._turns = {}, set(), {}
            self._rests.clear()
            kept = {source: lane for source, lane in self.lanes.items() if source in assigned}
            for source, lane in kept.items():
                if lane.position is not None:
                    self.client_seek(source, lane.position)
            await self.on_partitions_assigned(assigned, generation)
            journal, standbys = self.wiring.journal, self.app.assignor.assigned_standbys()
            try:
                self.wiring.sink.standby(frozenset(source.partition for source in standbys if source.topic == journal))
            except Exception as error:
                await self._sink_failed(error)

    async def withdraw(self, revoked: Iterable[TP] | None = None) -> None:
        revoked = None if revoked is None else set(revoked)
        await super().withdraw(revoked)
        for source in list(self._arrived) if revoked is None else revoked:
            self._arrived.pop(source, None)

    async def sink_pin(self, positions: Mapping[TopicPartition, int]) -> None:
        await self._thread.call_thread(self._thread.pin, positions)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if self._thread.crashed:
            return False
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                done: bool = await super()._commit(offsets)
        except TimeoutError:
            log.warning("commit_failed", error=f"no answer for {_COMMIT_TIMEOUT:.0f} s")
            return False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            log.warning("commit_failed", error="the consumer's thread has ended")
            return False
        return done


def _joined(waiting: deque[Batch]) -> Batch:
    records = []
    for batch in waiting:
        records += batch.records
    return Batch(records, waiting[-1].next_offset)


class Transport(driver.Transport):  # type: ignore[misc]
    """`agnt5-kafka` among Faust's transports."""

    Consumer = KafkaConsumer
    Producer = NoProducer


class KafkaApp(EngineApp):
    """The app of one membership on Kafka."""

    def __init__(self, wiring: Wiring) -> None:
        session = float(wiring.settings.session_timeout)
        super().__init__(
            wiring,
            FAUST_URL,
            broker_session_timeout=session,
            table_standby_replicas=wiring.settings.standbys,
            PartitionAssignor=Assignor,
        )


def make_membership(wiring: Wiring) -> FaustMembership:
    return FaustMembership(
        lambda: KafkaApp(wiring),
        retriable=lambda error: isinstance(error, RetriableError) or not isinstance(error, TransportError),
    )
