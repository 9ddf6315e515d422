"""`agnt5 worker`: executes the steps of one queue, as one member of the queue's consumer group `<group>.<queue>`.

On the embedded log there is nothing for it to do: there the processor executes the steps of queues itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, errors
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from agnt5 import registry
from agnt5_engine.garbage import collect_seldom
from agnt5_engine.logs import configure_logs
from agnt5_engine.partition.gates import Gates
from agnt5_engine.partition.steps import Slots
from agnt5_engine.queues.pool import Pool
from agnt5_engine.queues.positions import Positions
from agnt5_engine.queues.results import Results
from agnt5_engine.queues.topics import ensure_queue
from agnt5_engine.records.avro import MAGIC, RecordError, decode, seal_with
from agnt5_engine.records.journal import StepCommand, StepWithdrawn
from agnt5_engine.settings import Settings, SettingsError
from agnt5_engine.transport import open_log
from agnt5_engine.transport.base import Log, RetriableError
from agnt5_engine.transport.kafka.wire import Client
from agnt5_engine.watchdog import Watchdog

log = structlog.stdlib.get_logger(__name__)

#: Commit metadata of a worker that let go of a partition in order: nothing of it was in the middle of being executed.
_CLEAN = "clean"
_COMMIT_SECONDS = 1.0
_POLL_MS = 200
#: Seconds that what runs may take to end when the worker is asked to stop.
_GRACE = 20.0
_REBALANCE_MS = 30_000
_POLL_RECORDS = 500
#: A partition is read at most so far beyond its committed offset: what another worker that dies may have begun.
_WINDOW = 2000


async def run_worker(settings: Settings, modules: Sequence[str], queue: str) -> None:
    """Load the modules and execute the queue's steps until SIGTERM or SIGINT; then finish what runs, and go.

    Concurrency is that of the settings (AGNT5_STEP_CONCURRENCY async steps, AGNT5_STEP_THREADS threads) and, below
    that, of AGNT5_QUEUE_<NAME>_CONCURRENCY and _RATE and AGNT5_FUNCTION_<NAME>_CONCURRENCY and _RATE, each for this
    process. For instance AGNT5_QUEUE_GPU_CONCURRENCY=1 with AGNT5_FUNCTION_CHARGE_RATE=300/m.
    Raises SettingsError on the embedded log, and what makes it impossible to go on."""
    if settings.is_embedded:
        raise SettingsError(
            "a worker needs Kafka: on the embedded log the processor executes the steps of queues itself. "
            "Set AGNT5_BROKER=kafka://HOST:9092, or start only the processor"
        )
    configure_logs(settings)
    seal_with(settings.payload_keys)
    for module in modules:
        registry.load(module)
    collect_seldom()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    await Worker(settings, queue).run(stop)


class Worker:
    """One member of a queue's pool. `run` it once."""

    def __init__(self, settings: Settings, queue: str) -> None:
        self._settings = settings
        self._queue = queue
        self._topic = settings.steps_topic(queue)
        self.name = settings.instance_id or f"{socket.gethostname()}-{os.getpid()}"
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slots = Slots(settings.step_concurrency, settings.step_threads)
        self._sources: dict[KafkaPartition, _Source] = {}
        self._committed: dict[KafkaPartition, int] = {}
        self._consumer: AIOKafkaConsumer
        self.pool: Pool

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, or raises why it cannot go on."""
        settings = self._settings
        log_ = open_log(settings.broker, settings)
        watchdog = Watchdog()
        results = Results(log_, settings.journal_topic, settings.partitions, self.fail)
        self.pool = Pool(
            results,
            self._slots,
            Gates(settings.queue_limit, settings.function_limit),
            queue=self._queue,
            worker=self.name,
            function=registry.find_function,
            beat_seconds=settings.heartbeat_timeout / 3,
            max_payload=settings.max_payload_bytes,
        )
        try:
            await self._wait_for_topic(log_, stop)
            if not stop.is_set():
                await self._work(stop)
        finally:
            await results.close()
            self._slots.close()
            watchdog.close()
            await log_.close()

    async def _wait_for_topic(self, log_: Log, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await ensure_queue(log_, self._settings, self._queue)
                return
            except RetriableError as e:
                log.warning("worker.waiting_for_broker", error=str(e))
                await asyncio.sleep(1)

    async def _work(self, stop: asyncio.Event) -> None:
        self._consumer = await self._join(stop)
        if stop.is_set():
            return
        log.info("worker.started", queue=self._queue, worker=self.name)
        loops = [asyncio.create_task(work) for work in (self._consume(), self._commit_often(), _asked(stop))]
        try:
            await asyncio.wait((*loops, self._failure), return_when=asyncio.FIRST_COMPLETED)
            for task in (*loops, self._failure):
                if task.done():
                    task.result()
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._leave()

    async def _join(self, stop: asyncio.Event) -> AIOKafkaConsumer:
        settings = self._settings
        session_ms = round(settings.session_timeout * 1000)
        while True:
            consumer = AIOKafkaConsumer(
                group_id=f"{settings.group}.{self._queue}",
                client_id=self.name,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=max(100, session_ms // 3),
                rebalance_timeout_ms=_REBALANCE_MS,
                request_timeout_ms=_REBALANCE_MS + 10_000,
                max_poll_records=_POLL_RECORDS,
                metadata_max_age_ms=5000,
                **settings.kafka_options(),
            )
            Client.take_over(consumer._client)  # a queue that was deleted is for the engine to make anew
            try:
                await consumer.start()
                consumer.subscribe([self._topic], listener=_Rebalance(self))
                return consumer
            except (OSError, errors.KafkaError) as e:
                await consumer.stop()
                if isinstance(e, errors.KafkaError) and not e.retriable:
                    raise
                log.warning("worker.waiting_for_broker", error=str(e))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 1)
                if stop.is_set():
                    return consumer

    async def _leave(self) -> None:
        """Finish what runs, commit, and tell the group."""
        sources = list(self._sources.values())
        await self.pool.close(_GRACE)
        await self.pool.release([source.positions for source in sources])
        await self._commit(_CLEAN)
        await self._consumer.stop()
        log.info("worker.stopped", queue=self._queue, worker=self.name)

    def fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    # ------------------------------------------------------------------ partitions come and go

    async def assigned(self, partitions: Sequence[KafkaPartition]) -> None:
        """Note where each begins, and what another worker may have died with."""
        self._committed.clear()
        known = await self._consumer._coordinator.fetch_committed_offsets(list(partitions))
        ends = await self._consumer.end_offsets(list(partitions))
        starts = await self._consumer.beginning_offsets(list(partitions))
        for partition in partitions:
            before = known.get(partition)
            if before is None or before.offset < 0:
                start, clean = starts[partition], True
            else:
                start, clean = max(before.offset, starts[partition]), before.metadata == _CLEAN
            self._consumer.seek(partition, start)
            suspects_until = start if clean else min(ends[partition], start + _WINDOW)
            self._sources[partition] = _Source(self.pool, start, suspects_until)
        # Takes the mark _CLEAN off: should this worker die, the next knows that it may have begun commands.
        await self._commit("")
        log.info("worker.assigned", queue=self._queue, partitions=sorted(p.partition for p in partitions))

    async def revoked(self) -> None:
        """All may go elsewhere. What runs here goes on, and nobody else begins it."""
        if self._sources:
            await self.pool.release([source.positions for source in self._sources.values()])
            await self._commit(_CLEAN)
            self._sources.clear()

    # ------------------------------------------------------------------ loops

    async def _consume(self) -> None:
        consumer = self._consumer
        while True:
            await self._hold_back()
            try:
                fetched = await consumer.getmany(timeout_ms=_POLL_MS)
            except errors.OffsetOutOfRangeError as e:
                log.error("worker.commands_gone", queue=self._queue, error=str(e))
                continue
            for partition, records in fetched.items():
                source = self._sources.get(partition)
                if source is not None:
                    for record in records:
                        source.take(record.offset, self._decoded(record))
                    source.positions.passed(records[-1].offset + 1)

    async def _hold_back(self) -> None:
        """Read no more where enough waits, or where too much has been read since the last commit."""
        consumer, sources = self._consumer, self._sources
        most = _WINDOW - _POLL_RECORDS
        ahead = {p for p, source in sources.items() if source.read - self._committed.get(p, 0) >= most}
        if ahead:
            self.pool.unblock([sources[p].positions for p in ahead])
            await self._commit("")
        held = set(sources) if self.pool.full else ahead
        assigned, paused = consumer.assignment(), consumer.paused()
        if more := (held - paused) & assigned:
            consumer.pause(*more)
        if less := (paused - held) & assigned:
            consumer.resume(*less)

    def _decoded(self, record: Any) -> StepCommand | StepWithdrawn | None:
        """None: no command of ours. Raises RecordError for one of a newer release, which must not be passed over."""
        value = record.value or b""
        try:
            command = decode(value)
        except RecordError as e:
            if value.startswith(MAGIC):
                raise
            log.error("worker.undecodable", queue=self._queue, offset=record.offset, error=str(e))
            return None
        return command if isinstance(command, StepCommand | StepWithdrawn) else None

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(_COMMIT_SECONDS)
            self.pool.unblock([source.positions for source in self._sources.values()])
            await self._commit("")

    async def _commit(self, metadata: str) -> None:
        offsets = {
            partition: OffsetAndMetadata(source.positions.done, metadata)
            for partition, source in self._sources.items()
            if metadata == _CLEAN or source.positions.done != self._committed.get(partition)
        }
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
            self._committed.update({partition: known.offset for partition, known in offsets.items()})
        except errors.KafkaError as e:
            # Another worker reads these again; results count once.
            log.warning("worker.commit_failed", queue=self._queue, error=str(e))


async def _asked(stop: asyncio.Event) -> None:
    """Until the worker is asked to stop."""
    await stop.wait()


class _Source:
    """One assigned partition. Commands before `suspects_until` may have been in the hands of a worker that died."""

    def __init__(self, pool: Pool, start: int, suspects_until: int) -> None:
        self._pool = pool
        self.positions = Positions(start)
        self.read = start
        self._suspects_until = suspects_until

    def take(self, offset: int, command: StepCommand | StepWithdrawn | None) -> None:
        self.read = offset + 1
        if command is None:
            return
        if offset < self._suspects_until and isinstance(command, StepCommand):
            self._pool.ask(self.positions, offset, command)
        else:
            self._pool.take(self.positions, offset, command)


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Ends the worker when it fails: aiokafka would only log the error, and go on with partitions whose commands are
    then passed over."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._or_fail(self._worker.revoked())

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._or_fail(self._worker.assigned(sorted(assigned)))

    async def _or_fail(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as e:
            self._worker.fail(e)
