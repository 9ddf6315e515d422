"""The owners' side of queues: steps to their pools, and again when the worker that has one falls silent.

A step's command is appended to its queue's topic; once that is durable, StepDispatched in the journal says so, and no
later owner sends it again. From then on the consumer group of the pool sees to it that somebody executes it. A worker
that has it in hand for long says so in the journal (StepBeat); when it stops saying so, the command is sent once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from agnt5.function import Function
from agnt5.policies import StepOptions
from agnt5.replay.protocol import StepAsk
from agnt5_engine.partition.owner import Owner
from agnt5_engine.queues.topics import ensure_queue
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import StepCommand, StepDispatched, StepFailed, StepWithdrawn
from agnt5_engine.records.routing import partition_of
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.runs.pools import ALONE_FROM
from agnt5_engine.settings import Settings
from agnt5_engine.topics import keep_ms
from agnt5_engine.transport.base import Log, Message, TooLargeError, TopicPartition, TransportError

log = structlog.stdlib.get_logger(__name__)

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 10.0


class _Sent(NamedTuple):
    """One record for a queue's topic, and what to write into the journal once it is there."""

    owner: Owner
    run_id: str
    record: StepCommand | StepWithdrawn


#: A command: its owner, run, path and attempt.
_Asked = tuple[Owner, str, str, int]


class _Hand(NamedTuple):
    """A step that a worker has in hand."""

    owner: Owner
    heard: float  # monotonic seconds


class Dispatcher:
    """Hands the steps of queues to their pools. `function` looks functions up by name.

    On the embedded log there is one process, which executes them itself: `dispatch` always returns False there."""

    def __init__(self, log_: Log, settings: Settings, function: Callable[[str], Function[Any] | None]) -> None:
        self._log = log_
        self._settings = settings
        self._function = function
        self._local = settings.is_embedded
        self._partitions: dict[str, int] = {}
        self._buffers: dict[str, list[_Sent]] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._buffered: set[_Asked] = set()
        self._in_hand: dict[tuple[str, str], _Hand] = {}
        self._watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ what owners call

    def dispatch(self, owner: Owner, run: Run, pending: Pending, path: str) -> bool:
        """True: the step belongs to a queue, and its pool has it or will have it."""
        if self._local or (queue := self._queue(pending)) is None:
            return False
        key = (run.run_id, path)
        if pending.dispatched:
            if pending.beat_at is not None:
                self._hear(owner, key)  # by the owner before; it may have fallen silent since
            elif owner.state.now - pending.asked_at > keep_ms(self._settings):
                self._send_again(owner, queue, run, pending, path)  # the topic may have dropped it before a worker came
            return True
        asked = (owner, *key, pending.attempt)
        if asked not in self._buffered:
            # Also when an earlier copy is on its way to the topic: a worker may have read that and let go of it.
            self._buffered.add(asked)
            self._in_hand.pop(key, None)
            self._send(queue, _Sent(owner, run.run_id, _command(run, pending, path)))
        return True

    def withdraw(self, owner: Owner, run_id: str, path: str, pending: Pending) -> None:
        """Nobody waits for the step any more."""
        if self._local or (queue := self._queue(pending)) is None:
            return
        self._in_hand.pop((run_id, path), None)
        self._buffered.discard((owner, run_id, path, pending.attempt))  # asked for anew, it is sent after this
        # Also when no StepDispatched has been applied yet: its command may be in the topic all the same.
        self._send(queue, _Sent(owner, run_id, StepWithdrawn(run_id, path)))

    def alive(self, owner: Owner, run_id: str, path: str) -> None:
        """A worker has it in hand."""
        self._hear(owner, (run_id, path))

    async def close(self) -> None:
        tasks = [*self._senders.values(), *([self._watch] if self._watch is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _queue(self, pending: Pending) -> str | None:
        ask = pending.ask
        assert isinstance(ask, StepAsk)
        if ask.function is None:
            return None
        if ask.options is not None:
            return StepOptions.from_json(ask.options).queue
        function = self._function(ask.function)
        return function.policy.queue if function is not None else None

    # ------------------------------------------------------------------ sending

    def _send(self, queue: str, sent: _Sent) -> None:
        self._buffers.setdefault(queue, []).append(sent)
        if queue not in self._senders:
            self._senders[queue] = asyncio.get_running_loop().create_task(self._drain(queue))

    async def _drain(self, queue: str) -> None:
        try:
            while batch := self._buffers.pop(queue, []):
                for owner, run_id, record in batch:
                    if isinstance(record, StepCommand):
                        self._buffered.discard((owner, run_id, record.path, record.attempt))
                await self._deliver(queue, batch)
        finally:
            del self._senders[queue]

    async def _deliver(self, queue: str, batch: list[_Sent]) -> None:
        """Until all are durable. Their order within a run is kept: a later batch waits for this one."""
        topic, delay = self._settings.steps_topic(queue), _FIRST_DELAY
        while True:
            try:
                count = self._partitions.get(queue)
                if count is None:
                    count = self._partitions[queue] = await ensure_queue(self._log, self._settings, queue)
                groups: dict[int, list[_Sent]] = {}
                for sent in batch:
                    groups.setdefault(partition_of(sent.run_id, count), []).append(sent)
                appends = [self._append(topic, *group) for group in groups.items()]
                results = await asyncio.gather(*appends, return_exceptions=True)
                failed = [(p, error) for p, error in zip(groups, results, strict=True) if error is not None]
                if not failed:
                    return
                batch = [sent for p, _ in failed for sent in groups[p]]  # a step sent twice is executed twice
                raise failed[0][1]
            except TransportError as e:
                # Also a topic that is missing: the steps wait for whoever makes it, maybe with other partitions.
                self._partitions.pop(queue, None)
                log.warning("queue.retry", queue=queue, commands=len(batch), error=str(e), delay=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)

    async def _append(self, topic: str, partition: int, group: list[_Sent]) -> None:
        target = TopicPartition(topic, partition)
        messages = [Message(sent.run_id.encode(), encode(sent.record)) for sent in group]
        try:
            await self._log.append(target, messages)
        except TooLargeError as e:
            if len(group) > 1:
                for sent in group:
                    await self._append(topic, partition, [sent])
                return
            self._too_large(group[0], e)
            return
        for owner, run_id, record in group:
            if isinstance(record, StepCommand) and not owner.closed:
                owner.append(run_id, StepDispatched(run_id, record.path, record.attempt, owner.claim))

    def _too_large(self, sent: _Sent, error: TooLargeError) -> None:
        """Trying again would not help: the step fails."""
        c = sent.record
        assert isinstance(c, StepCommand)
        if not sent.owner.closed:
            told = f"the command of step {c.name!r} is too large for its queue: {error}"
            claim = sent.owner.claim
            failed = StepFailed(sent.run_id, c.path, c.attempt, "agnt5.errors.FatalError", told, "", None, claim)
            sent.owner.append(sent.run_id, failed)

    # ------------------------------------------------------------------ listening

    def _hear(self, owner: Owner, key: tuple[str, str]) -> None:
        self._in_hand[key] = _Hand(owner, time.monotonic())
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        """Send again what a worker had in hand and has not spoken of for too long."""
        timeout = self._settings.heartbeat_timeout
        while True:
            await asyncio.sleep(timeout / 6)
            late = time.monotonic() - timeout
            for key, (owner, heard) in list(self._in_hand.items()):
                if owner.closed or heard < late:
                    del self._in_hand[key]
                    if not owner.closed:
                        self._silent(owner, *key)

    def _silent(self, owner: Owner, run_id: str, path: str) -> None:
        run = owner.state.run(run_id)
        if run is None or run.ended or run.status == "paused" or (pending := run.pending.get(path)) is None:
            return
        queue = self._queue(pending) if isinstance(pending.ask, StepAsk) else None
        if queue is not None and pending.dispatched:
            log.warning("step.silent", run_id=run_id, step=path, queue=queue, hint="it is given to another worker")
            self._send_again(owner, queue, run, pending, path)

    def _send_again(self, owner: Owner, queue: str, run: Run, pending: Pending, path: str) -> None:
        """Whoever has it, or finds it before this, leaves it alone."""
        self._send(queue, _Sent(owner, run.run_id, StepWithdrawn(run.run_id, path)))
        self._send(queue, _Sent(owner, run.run_id, _command(run, pending, path)))


def _command(run: Run, pending: Pending, path: str) -> StepCommand:
    ask = pending.ask
    assert isinstance(ask, StepAsk)
    assert ask.function is not None
    return StepCommand(
        run_id=run.run_id,
        run_attempt=run.attempt,
        path=path,
        attempt=pending.attempt,
        name=ask.name,
        function=ask.function,
        input=ask.input,
        options=ask.options,
        session_id=run.session,
        user_id=run.user,
        workflow=run.workflow,
        metadata=run.metadata,
        alone=pending.restarts >= ALONE_FROM,
    )
