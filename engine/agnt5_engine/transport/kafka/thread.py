"""Faust's consumer thread over Kafka: the group's protocol, heartbeats and fetching, apart from the engine's loop.

What is fetched goes to the engine's loop at once (`KafkaConsumer.arrived`); a partition that has too much waiting
there, or that the engine has not asked for yet, is paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, errors
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition
from faust.transport.consumer import ensure_TPset
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from agnt5_engine.transport.base import Batch, OffsetGoneError, Record, RetriableError, TopicPartition, TransportError
from agnt5_engine.transport.kafka.batch import records_of
from agnt5_engine.transport.kafka.joining import HOPELESS, Joining, why_hopeless
from agnt5_engine.transport.kafka.read import only
from agnt5_engine.transport.kafka.wire import Client

if TYPE_CHECKING:
    from agnt5_engine.transport.kafka.consumer import KafkaConsumer

REBALANCE_TIMEOUT_MS = 15_000
# Above the time a rebalance may take: the broker holds the request to join for as long.
REQUEST_TIMEOUT_MS = REBALANCE_TIMEOUT_MS + 10_000
# A partition that is sought or resumed waits for the fetch under way, so none lasts longer than this.
FETCH_WAIT_MS = 100
# While partitions rest, shorter: one of them may be wanted again at any time.
RESTING_FETCH_WAIT_MS = 20
FETCH_BYTES = 2**20
METADATA_AGE_MS = 5_000
_WATCH_EVERY = 1.0
_INSIST_EVERY = 10.0  # seconds between attempts to have a partition given to somebody

_LOOK_AGAIN = 5.0  # seconds after which a partition that could not be read is tried again
# What aiokafka makes of a header's name that is not UTF-8, in C and in Python.
_NAME_PROBLEMS = (UnicodeDecodeError, errors.CorruptRecordException)

_STOP_SECONDS = 3.0


log = structlog.stdlib.get_logger(__name__)


class Arrival(NamedTuple):
    """What was fetched of one partition. `turn`: how often it had been sought by then."""

    source: TP
    turn: int
    batch: Batch


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        await self._thread.revoking(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        self._thread.assigned(ensure_TPset(assigned))


class Thread(AIOKafkaConsumerThread):  # type: ignore[misc]
    consumer: KafkaConsumer

    def __post_init__(self) -> None:
        super().__post_init__()
        self._turns: dict[TP, int] = {}
        self._flowing: set[TP] = set()
        self._resting: set[TP] = set()
        self._generation = -1
        self._member = ""
        self._stale = False  # what the engine has acknowledged may be behind what others have committed since
        self._pump_task: asyncio.Task[None] | None = None
        self._watch_task: asyncio.Task[None] | None = None

    def post(self, do: Callable[..., None], *args: Any) -> None:
        """Have something done in this thread, in the order asked. Called on the engine's loop."""
        if not self.thread_loop.is_closed():
            self.thread_loop.call_soon_threadsafe(do, *args)

    # -- coming and going

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        wiring = self.app.wiring
        session_ms = round(self.app.conf.broker_session_timeout * 1000)
        consumer = AIOKafkaConsumer(
            **wiring.settings.kafka_options(),
            client_id=wiring.instance_id,
            group_id=wiring.app_id,
            group_instance_id=wiring.instance_id,
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",  # a journal that lost records must not be skipped over in silence
            isolation_level="read_committed",
            session_timeout_ms=session_ms,
            # A member learns with a heartbeat that another has died and partitions are free.
            heartbeat_interval_ms=min(1_000, session_ms // 3),
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        Client.take_over(consumer._client)
        return consumer

    async def on_start(self) -> None:
        self._consumer = self._create_consumer(loop=self.thread_loop)
        self.time_started = time.monotonic()
        try:
            await self._consumer.start()
        except (OSError, errors.KafkaError) as error:
            raise RetriableError(f"the group cannot be joined just now: {error}") from error
        coordinator = self._consumer._coordinator
        joining = Joining(coordinator, self.app)
        coordinator._on_join_complete = joining.complete
        coordinator._do_rejoin_group = joining.rejoin
        coordinator._do_commit_offsets = joining.commit
        self._pump_task = asyncio.get_running_loop().create_task(self._run(self._pump()))
        self._watch_task = asyncio.get_running_loop().create_task(self._run(self._watch()))

    async def on_thread_stop(self) -> None:
        for task in (self._pump_task, self._watch_task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._consumer is not None and self._consumer._coordinator is not None and self.consumer.leave_on_stop:
            self._consumer._coordinator._group_instance_id = None  # only then does aiokafka tell the group
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await super().on_thread_stop()
        except (Exception, asyncio.CancelledError) as error:
            # aiokafka waits for a broker that is away, or trips over its own cancelled requests; the engine waits too.
            log.debug("consumer.abandoned", error=repr(error))
            await self._abandon()

    def close(self) -> None:
        """Stock Faust would close the client here from the engine's loop, which is not the client's, and leave its
        connections open when that fails: `on_thread_stop` closes it."""

    async def _abandon(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        tasks = set(consumer._fetcher._pending_tasks) if consumer._fetcher is not None else set()
        if consumer._coordinator is not None:
            tasks.add(consumer._coordinator._coordination_task)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        # Cancelled are also what was waited for above, without success: the thread ends all the same.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await asyncio.wait_for(consumer._client.close(), 1)

    async def _run(self, work: Any) -> None:
        """End the membership when a task of this thread fails."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except HOPELESS as error:
            self._tell(self.consumer.gone, TransportError(why_hopeless(error)))
        except Exception as error:
            self._tell(self._crash_consumer, error)

    def _crash_consumer(self, error: Exception) -> None:
        self.consumer.add_future(self.consumer.crash(error))

    def _tell(self, do: Callable[..., Any], *args: Any) -> None:
        if not self.parent_loop.is_closed():
            self.parent_loop.call_soon_threadsafe(do, *args)

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Stock mode prints to stderr; the membership logs why it was lost."""

    # -- the group

    async def revoking(self, revoked: set[TP]) -> None:
        await self.consumer.threadsafe_partitions_revoked(self.thread_loop, revoked)

    def assigned(self, assigned: set[TP]) -> None:
        """Pass the assignment on without waiting: no heartbeat is sent before this returns."""
        consumer = self._ensure_consumer()
        coordinator = consumer._coordinator
        generation, member = coordinator.generation, coordinator.member_id
        unbroken = member == self._member and generation - self._generation in (0, 1)
        self._generation, self._member = generation, member
        self._stale = self._stale or not unbroken
        self._turns, self._flowing = {}, set()
        self._rested(set())
        self.app.consumer_generation_id = generation
        consumer.pause(*map(_kafka, assigned))
        self._tell(self._settle, assigned, generation, unbroken)

    def withdrawn(self, generation: int) -> None:
        """The engine holds nothing that others may have had meanwhile: from here on its acknowledgements count."""
        if generation == self._generation:
            self._stale = False

    def _settle(self, assigned: set[TP], generation: int, unbroken: bool) -> None:
        self.consumer.add_future(self.consumer.settled(assigned, generation, unbroken=unbroken))

    async def _watch(self) -> None:
        """See to it that every partition we subscribe to is given to somebody.

        The leader of the group does that, but one that was restarted as a static member does not know that it leads,
        and a member that comes back with another subscription is let in without a rebalance.
        """
        consumer = self._ensure_consumer()
        coordinator, assignor = consumer._coordinator, self.app.assignor
        insisted = float("-inf")
        seen: set[tuple[str, int]] = set()
        while True:
            await asyncio.sleep(_WATCH_EVERY)
            subscription = consumer._subscription.subscription
            if subscription is None or subscription.assignment is None or coordinator.need_rejoin(subscription):
                continue
            cluster = consumer._client.cluster
            there = {(topic, p) for topic in subscription.topics for p in cluster.partitions_for_topic(topic) or ()}
            missing = there - assignor.covered()
            if missing & seen and time.monotonic() - insisted > _INSIST_EVERY:
                insisted = time.monotonic()
                log.info("membership.rebalance_wanted", unassigned=len(missing), topics=sorted({t for t, _ in missing}))
                assignor.insist()
                coordinator.request_rejoin()
            seen = missing

    # -- fetching

    def let_flow(self, source: TP) -> None:
        self._flowing.add(source)
        self._with(source, lambda state: state.resume())

    def hold(self, source: TP) -> None:
        self._flowing.discard(source)
        self._with(source, lambda state: state.pause())

    def rest(self, source: TP) -> None:
        """Fetch nothing of it until it is sought."""
        self.hold(source)
        self._rested({*self._resting, source})

    def _rested(self, resting: set[TP]) -> None:
        self._resting = resting
        consumer = self._consumer
        if consumer is not None and consumer._fetcher is not None:
            consumer._fetcher._fetch_max_wait_ms = RESTING_FETCH_WAIT_MS if resting else FETCH_WAIT_MS

    def seek_now(self, source: TP, offset: int, turn: int) -> None:
        self._turns[source] = turn
        self._rested(self._resting - {source})
        consumer = self._consumer
        if consumer is not None and _kafka(source) in consumer.assignment():
            consumer.seek(_kafka(source), offset)

    def _with(self, source: TP, do: Callable[[Any], None]) -> None:
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is not None and _kafka(source) in assignment.tps:
            do(assignment.state_value(_kafka(source)))

    async def _pump(self) -> None:
        """Move what is fetched to the engine's loop, as it comes."""
        consumer = self._ensure_consumer()
        fetcher, coordinator, subscriptions = consumer._fetcher, consumer._coordinator, consumer._subscription
        journal = self.app.wiring.journal
        topics = self.app.wiring.topics
        with subscriptions.fetch_context():  # a member that is alive is never put out for taking its time
            while True:
                coordinator.check_errors()
                if fetcher.error_future.done():
                    fetcher.error_future.result()
                if not fetcher._records:
                    waiter = fetcher._create_fetch_waiter()
                    await asyncio.wait([waiter], timeout=0.5)
                    if waiter.done():
                        waiter.result()
                    else:
                        waiter.cancel()
                if subscriptions.reassignment_in_progress:
                    await subscriptions.wait_for_assignment()
                fetched: dict[KafkaPartition, list[Any]] = {}
                troubled: dict[KafkaPartition, Exception] = {}
                for partition, result in fetcher._records.items():
                    if type(result) is not FetchResult:
                        troubled[partition] = result._error
                        continue
                    if partition.topic in topics and result._partition_records:
                        result._partition_records._consumer_record = _record
                    try:
                        if records := result.getall():
                            fetched[partition] = records
                    except Exception as error:
                        troubled[partition] = error
                fetcher._records.clear()
                fetcher._notify(fetcher._wait_consume_future)
                if fetched:
                    self._push(subscriptions.subscription.assignment, fetched)
                for partition, problem in troubled.items():
                    await self._trouble(TP(*partition), problem, journal)

    def _push(self, assignment: Any, fetched: Mapping[Any, list[Any]]) -> None:
        arrivals = []
        for partition, records in fetched.items():
            source = TP(*partition)
            batch = Batch(records, assignment.state_value(partition).position)
            arrivals.append(Arrival(source, self._turns.get(source, 0), batch))
        self._tell(self.consumer.arrived, arrivals)

    async def _trouble(self, source: TP, error: Exception, journal: str) -> None:
        """One partition cannot be fetched, or what was fetched of it cannot be read: the others go on."""
        if isinstance(error, errors.NoOffsetForPartitionError):
            self._start(source, journal)
        elif isinstance(error, errors.OffsetOutOfRangeError):
            await self._out_of_range(source, error.args[0][_kafka(source)], journal)
        elif not isinstance(error, _NAME_PROBLEMS) or not await self._fetch_odd_names(source):
            log.error(
                "kafka.unreadable", topic=source.topic, partition=source.partition, error=str(error) or repr(error),
                retry_in=_LOOK_AGAIN,
            )  # fmt: skip
            self._with(source, lambda state: state.pause())
            asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_again, source, self._generation)

    def _look_again(self, source: TP, generation: int) -> None:
        if generation == self._generation and source in self._flowing:
            self._with(source, lambda state: state.resume())

    async def _fetch_odd_names(self, source: TP) -> bool:
        """Fetch what aiokafka does not read for a header's name that is not UTF-8. False when that is not it."""
        consumer, partition = self._ensure_consumer(), _kafka(source)
        assignment = consumer._subscription.subscription.assignment
        if assignment is None or partition not in assignment.tps:
            return True  # it is another's by now
        position = assignment.state_value(partition).position
        pieces = [(source.topic, [(source.partition, position, FETCH_BYTES)])]
        try:
            leader = consumer._client.cluster.leader_for_partition(partition)
            response = await consumer._client.send(leader, FetchRequest(0, 1, FETCH_BYTES, 1, pieces))
            _, code, _, _, _, aborted, *_, data = only(response)
            if code != 0:
                return False
            batch = records_of(data, aborted, position, 2**63 - 1)
        except (errors.KafkaError, TransportError):
            return False
        state = assignment.state_value(partition)
        if assignment.active and not state.paused and state.position == position:
            state.consumed_to(batch.next_offset)
            self._push(assignment, {partition: batch.records})
        return True

    def _start(self, source: TP, journal: str) -> None:
        """A partition the group has no offset for: a trigger starts at the earliest, the journal where it is sought."""
        if source in self._turns or _kafka(source) not in self._ensure_consumer().assignment():
            return
        if source.topic == journal:
            self._ensure_consumer().seek(_kafka(source), 0)
        else:
            self._with(source, lambda state: state.await_reset(-2))

    async def _out_of_range(self, source: TP, offset: int, journal: str) -> None:
        consumer, partition = self._ensure_consumer(), _kafka(source)
        first = (await consumer.beginning_offsets([partition]))[partition]
        if partition not in consumer.assignment() or await consumer.position(partition) != offset:
            return
        if source.topic != journal:
            log.warning("events_expired", topic=source.topic, partition=source.partition, first=offset, now=first)
            consumer.seek(partition, first)
        elif source in self._flowing:
            self.hold(source)
            error = OffsetGoneError(
                f"{journal}[{source.partition}] does not hold offset {offset} (any more): its first is {first}. "
                "Records that runs need are gone; see `agnt5 doctor`"
            )
            self._tell(self.consumer.unreadable, source, error)

    # -- committing

    async def pin(self, positions: Mapping[TopicPartition, int]) -> None:
        """Commit all of these or none, be they ours or another member's."""
        consumer = self._ensure_consumer()
        offsets = {KafkaPartition(*source): OffsetAndMetadata(offset, "") for source, offset in positions.items()}
        try:
            await consumer._coordinator._do_commit_offsets(None, offsets)
        except errors.KafkaError as error:
            raise RetriableError(f"positions cannot be committed just now: {error}") from error

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if self._stale:
            return False
        consumer = self._ensure_consumer()
        ours = consumer.assignment()
        wanted = {_kafka(source): OffsetAndMetadata(offset, "") for source, offset in offsets.items()}
        wanted = {partition: offset for partition, offset in wanted.items() if partition in ours}
        if not wanted:
            return False
        try:
            await consumer.commit(wanted)
        except errors.KafkaError as error:  # tried again at the next interval
            if not isinstance(error.__cause__, errors.RebalanceInProgressError):
                log.warning("commit_failed", error=str(error))
            return False
        return True


def _kafka(source: TP) -> KafkaPartition:
    return KafkaPartition(source.topic, source.partition)


def _record(_: Any, record: Any) -> Record:
    """In place of aiokafka's own, which makes an object three times as dear."""
    return Record(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
