"""A processor: one member of the group, its partitions, its triggers. The composition root.

Everything is wired here and nowhere else: the log, the membership over Faust, an `Owner` per journal partition, event
triggers, and the `Engine` that HTTP sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import structlog

from agnt5 import registry
from agnt5.client.models import Approval, DeadLetter, Event, Run
from agnt5.client.models import Processor as ProcessorShape
from agnt5.workflow import Workflow
from agnt5_engine import topics
from agnt5_engine.ingest import Ingest
from agnt5_engine.others import Others
from agnt5_engine.partition.gates import Gates
from agnt5_engine.partition.owner import Owner, Surroundings
from agnt5_engine.partition.recovery import PartitionStopped, Place
from agnt5_engine.partition.standby import Standby
from agnt5_engine.partition.steps import Slots
from agnt5_engine.partition.table import NoRoomError
from agnt5_engine.ports import NotHere, Page, Started, StartRequest
from agnt5_engine.publisher import Publisher
from agnt5_engine.records.routing import partition_of, routing_key
from agnt5_engine.runs.schedules import schedules_of
from agnt5_engine.serving.local import LocalRuns, request_run_id
from agnt5_engine.settings import Settings
from agnt5_engine.slots import Slot
from agnt5_engine.transport import make_membership, open_log
from agnt5_engine.transport.base import (
    Ack,
    Batch,
    FencedError,
    Headers,
    Log,
    Membership,
    OffsetGoneError,
    RetriableError,
    TopicPartition,
)

log = structlog.stdlib.get_logger(__name__)

_REOPEN_SECONDS = 1.0


class _Code:
    """The registry, as the runs see it."""

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self._workflows: dict[str, Workflow[Any]] = registry.workflows()

    def workflow(self, name: str) -> Workflow[Any] | None:
        return self._workflows.get(name)


class Processor:
    """Joins the group and works until closed. Implements `transport.base.Sink` and `ports.Engine`."""

    def __init__(self, settings: Settings, *, slot: Slot, url: str) -> None:
        self.settings = settings
        self.url = url
        self.instance_id = settings.instance_id or slot.instance_id
        self._slot = slot
        self._journal = settings.journal_topic
        self._owners: dict[int, Owner] = {}
        self._leaving: dict[int, set[asyncio.Task[None]]] = {}  # owners and standbys that are being closed
        self._assigned: frozenset[int] = frozenset()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._standbys: dict[int, Standby] = {}
        self._waiting: dict[int, str] = {}  # why a partition that is ours has no owner just now
        self._stopped: dict[int, str] = {}
        self._others: Others | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = Slots(settings.step_concurrency, settings.step_threads)
        limited = settings.queue_limits or settings.function_limits
        self._gates = Gates(settings.queue_limit, settings.function_limit) if limited else None
        self._code = _Code(settings.max_payload_bytes)
        self._schedules = schedules_of(registry.workflows().values())
        self._code_version = settings.code_version or registry.code_version()
        self._membership: Membership | None = None
        self._trouble: str | None = "has not joined the group yet"
        self._closing = False
        self._started_at = datetime.now(UTC)
        self.log: Log
        self.local = LocalRuns(settings.partitions, self._owner_of, self._live_owners)

    # ------------------------------------------------------------------ life

    async def join(self) -> None:
        """Open the log, see to the topics, join the group. Waits for a broker that is away."""
        self.log = open_log(self.settings.broker, self.settings)
        self.publisher = Publisher(self.log, self.settings)
        self.ingest = Ingest(self)
        delay = 0.5
        while True:
            try:
                self._cluster_id = await self.log.cluster_id()
                await topics.ensure(self.log, self.settings)
                await self.ingest.prepare()
                break
            except RetriableError as e:
                self._trouble = f"waiting for the broker: {e}"
                log.warning("broker.waiting", broker=self.settings.broker, error=str(e))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2)
        self._membership = make_membership(
            self.settings.broker,
            app_id=self.settings.group,
            instance_id=self.instance_id,
            advertised_url=self.url,
            journal=self._journal,
            partitions=self.settings.partitions,
            triggers=self.ingest.topics(),
            sink=self,
            settings=self.settings,
        )
        self._others = Others(self._membership)
        self._trouble = "waiting for its partitions"
        await self._membership.start()
        self._spawn(self._others.watch())

    async def close(self, *, leave: bool = False) -> None:
        """Checkpoint, give up the partitions, and go."""
        if self._closing:
            return
        self._closing = True
        if self._membership is not None:
            await self._membership.stop(leave=leave)
        await self._give_up(frozenset(self._assigned), save=True)
        await asyncio.gather(*(self._let_go(p, standby.close()) for p, standby in self._standbys.items()))
        await asyncio.gather(*(task for leaving in self._leaving.values() for task in leaving))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._slots.close()
        if hasattr(self, "ingest"):
            await self.ingest.close()
        if hasattr(self, "log"):
            await self.log.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ Sink

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        mine = frozenset(tp.partition for tp in partitions if tp.topic == self._journal)
        self._assigned = mine
        self._trouble = None
        if self._others is not None:
            self._others.changed()
        log.info("partitions.assigned", journal=sorted(mine), triggers=len(partitions) - len(mine))
        for p in sorted(mine):
            self._open_soon(p)
        await self.ingest.assigned(frozenset(tp for tp in partitions if tp.topic != self._journal))

    def unreadable(self, source: TopicPartition, error: OffsetGoneError) -> None:
        if (owner := self._owners.get(source.partition)) is not None:
            self._owner_stopped(owner, error)  # taking it again finds out, and says, what has become of the journal

    def standby(self, partitions: frozenset[int]) -> None:
        if self._closing:
            return
        for p in self._standbys.keys() - partitions - self._assigned:  # those that became ours are closed by `_open`
            self._let_go(p, self._standbys.pop(p).close())
        for p in partitions - self._standbys.keys() - self._assigned:
            self._standbys[p] = Standby(self._place(p))

    def _open_soon(self, partition: int, delay: float = 0.0) -> None:
        if partition not in self._owners and partition not in self._opening:
            task = asyncio.get_running_loop().create_task(self._open(partition, delay))
            self._opening[partition] = task

    async def _open(self, partition: int, delay: float) -> None:
        """Recover one partition and go live with it; again, if that fails for a passing reason."""
        owner: Owner | None = None
        try:
            await asyncio.sleep(delay)
            if (standby := self._standbys.pop(partition, None)) is not None:
                self._let_go(partition, standby.close())
            if leaving := self._leaving.get(partition):
                await asyncio.wait(leaving)
            owner = self._new_owner(partition)
            offset = await owner.open()
            assert self._membership is not None
            self._owners[partition] = owner
            self._stopped.pop(partition, None)
            self._waiting.pop(partition, None)
            self._membership.seek(owner.place.journal, offset)
            await owner.go_live()
        except asyncio.CancelledError:
            if owner is not None:
                await self._let_go(partition, owner.close(save=False))
            raise
        except Exception as e:
            self._owners.pop(partition, None)
            if owner is not None:
                await self._let_go(partition, owner.close(save=False))
            self._failed(partition, e)
        finally:
            self._opening.pop(partition, None)
            wanted = partition in self._assigned and partition not in self._owners and not self._closing
            if wanted and partition not in self._stopped:
                self._open_soon(partition, _REOPEN_SECONDS)

    def _failed(self, partition: int, error: BaseException) -> None:
        if isinstance(error, PartitionStopped):
            self._stopped[partition] = str(error)
            log.error("partition.stopped", partition=partition, error=str(error))
        elif isinstance(error, FencedError):
            log.warning("partition.fenced", partition=partition, error=str(error))
        elif isinstance(error, RetriableError | NoRoomError):
            self._waiting[partition] = str(error)
            log.warning("partition.waiting", partition=partition, error=str(error))
        else:
            self._waiting[partition] = str(error) or repr(error)
            log.error("partition.failed", partition=partition, error=repr(error), exc_info=error)

    def _place(self, partition: int) -> Place:
        s = self.settings
        return Place(
            log=self.log,
            journal=TopicPartition(self._journal, partition),
            changelog=TopicPartition(s.changelog_topic, partition),
            cluster_id=self._cluster_id,
            folder=self._slot.folder / "tables" / s.journal_topic / str(partition),
            partitions=s.partitions,
        )

    def _new_owner(self, partition: int) -> Owner:
        s = self.settings
        place = self._place(partition)
        checkpointer = self.log.checkpointer(f"{s.topic_prefix}{s.group}.{partition}", s.group, place.changelog)
        around = Surroundings(
            code=self._code,
            function=registry.find_function,
            slots=self._slots,
            publish=self.publisher.publish,
            dispatch=self.ingest.queues.dispatch,
            withdraw=self.ingest.queues.withdraw,
            alive=self.ingest.queues.alive,
            stopped=self._owner_stopped,
            dead_letter=self.ingest.journal_dead_letter,
            owner_id=self.instance_id,
            code_version=self._code_version,
            retention_ms=s.run_retention_ms,
            checkpoint_seconds=s.checkpoint_interval,
            schedules=self._schedules,
            gates=self._gates,
            known=self.membership.known,
            missed=self.membership.missed,
        )
        return Owner(place, checkpointer, around)

    def _owner_stopped(self, owner: Owner, error: BaseException) -> None:
        """An owner cannot go on: give its partition up, and take it again while it is ours."""
        if self._owners.get(owner.partition) is owner:
            del self._owners[owner.partition]
            self._failed(owner.partition, error if not isinstance(error, PartitionStopped) else FencedError(str(error)))
            self._spawn(self._replace(owner))

    def _let_go(self, partition: int, closing: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Close an owner or a standby. Whoever waits for that may be interrupted, closing may not: the table would stay
        open, and the next owner of the partition here waits for that."""
        task = asyncio.get_running_loop().create_task(closing)
        leaving = self._leaving.setdefault(partition, set())
        leaving.add(task)
        task.add_done_callback(leaving.discard)
        return asyncio.shield(task)

    async def _replace(self, owner: Owner) -> None:
        await self._let_go(owner.partition, owner.close(save=False))
        if owner.partition in self._assigned and not self._closing:
            self._open_soon(owner.partition, _REOPEN_SECONDS)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        mine = frozenset(tp.partition for tp in partitions if tp.topic == self._journal)
        self._assigned -= mine
        if not self._assigned:
            self._trouble = "waiting for its partitions"  # told next when there are to be none
        await self.ingest.revoked(partitions)
        await self._give_up(mine, save=True)

    async def _give_up(self, partitions: frozenset[int], *, save: bool) -> None:
        opening = [task for p in partitions if (task := self._opening.get(p)) is not None]
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        owners = [owner for p in partitions if (owner := self._owners.pop(p, None)) is not None]
        await asyncio.gather(*(self._let_go(owner.partition, owner.close(save=save)) for owner in owners))
        for p in partitions:
            self._stopped.pop(p, None)
            self._waiting.pop(p, None)

    async def records(self, source: TopicPartition, batch: Batch) -> None:
        if source.topic != self._journal:
            await self.ingest.records(source, batch)
        elif (owner := self._owners.get(source.partition)) is not None:
            await owner.consumed(batch)

    # ------------------------------------------------------------------ owners

    def _owner_of(self, partition: int) -> Owner:
        owner = self._owners.get(partition)
        if owner is None or not owner.caught_up:
            url = None
            if partition not in self._assigned and self._others is not None:
                url = self._others.url(partition, besides=self.url)
            raise NotHere(partition, url)
        return owner

    def _live_owners(self) -> list[Owner]:
        return [owner for _, owner in sorted(self._owners.items()) if owner.caught_up]

    def local_owner(self, run_id: str) -> Owner | None:
        """The owner of a run's partition, when that is this process."""
        owner = self._owners.get(self.partition_of(run_id))
        return owner if owner is not None and owner.caught_up else None

    @property
    def membership(self) -> Membership:
        assert self._membership is not None
        return self._membership

    def busy(self) -> bool:
        """Whether there is so much in hand (steps running and waiting, records on their way) that more events should
        wait.

        Runs that are let in only to stand in line hold memory, and every checkpoint in between writes their rows."""
        in_hand = self._slots.running + len(self._slots.waiting)
        return in_hand + sum(owner.unacked for owner in self._owners.values()) > self.settings.step_concurrency

    # ------------------------------------------------------------------ Engine

    def partition_of(self, run_id: str) -> int:
        return partition_of(routing_key(run_id), self.settings.partitions)

    def run_id_for(self, request: StartRequest) -> str:
        return request_run_id(request)

    def owned(self) -> frozenset[int]:
        return frozenset(p for p, owner in self._owners.items() if owner.caught_up)

    async def processors(self) -> list[ProcessorShape]:
        members = [] if self._others is None else await self._others.members()
        return [
            ProcessorShape(
                id=m.instance_id,
                url=m.url,
                partitions=sorted(m.partitions),
                started_at=self._started_at if m.instance_id == self.instance_id else None,
            )
            for m in members
        ]

    def readiness(self) -> list[tuple[int, bool]]:
        return [(p, (o := self._owners.get(p)) is not None and o.caught_up) for p in sorted(self._assigned)]

    def trouble(self) -> str | None:
        if self._stopped:
            return "; ".join(self._stopped[p] for p in sorted(self._stopped))
        if (away := self.log.away_for if hasattr(self, "log") else None) is not None:
            return f"waiting for the broker: {self.settings.broker} has not answered for {away:.0f} s"
        if self._trouble is not None:
            return self._trouble
        if self._others is not None and self._others.silence is not None:
            return f"waiting for the broker: {self._others.silence}"
        if self._waiting:
            return "; ".join(f"partition {p}: {self._waiting[p]}" for p in sorted(self._waiting))
        return None

    async def start(self, request: StartRequest) -> Started:
        return await self.local.start(request)

    async def answer(self, run_id: str, response: Any, entry: str | None, user_id: str | None) -> None:
        await self.local.answer(run_id, response, entry, user_id)

    async def signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> None:
        await self.local.signal(run_id, name, payload, signal_id)

    async def cancel(self, run_id: str, *, force: bool) -> None:
        await self.local.cancel(run_id, force=force)

    async def retry(self, run_id: str, key: str | None = None) -> None:
        await self.local.retry(run_id, key)

    async def run(self, run_id: str) -> Run:
        return await self.local.run(run_id)

    async def finished(self, run_id: str) -> Run:
        return await self.local.finished(run_id)

    async def events(self, run_id: str, after: int = 0) -> list[Event]:
        return await self.local.events(run_id, after)

    def follow(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        return self.local.follow(run_id, after)

    async def state(self, run_id: str) -> dict[str, Any]:
        return await self.local.state(run_id)

    async def history(self, run_id: str) -> bytes:
        return await self.local.history(run_id)

    async def runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Page:
        return await self.local.runs(
            status=status, workflow=workflow, session_id=session_id, limit=limit, before=before
        )

    async def approvals(self) -> list[Approval]:
        return await self.local.approvals()

    async def publish(self, topic: str, value: bytes, key: bytes | None, headers: Headers) -> tuple[int, Ack]:
        return await self.publisher.publish_event(topic, value, key, headers)

    def subscribed(self) -> frozenset[str]:
        return frozenset(self.ingest.topics())

    async def dead_letters(self, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        return await self.ingest.dead_letters(limit, after)

    async def dead_letter(self, letter_id: str) -> DeadLetter:
        return await self.ingest.dead_letter(letter_id)

    async def redrive(self, letter_id: str) -> list[str]:
        return await self.ingest.redrive(letter_id)
