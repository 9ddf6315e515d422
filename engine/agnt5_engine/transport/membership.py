"""`Membership` over Faust: starts the app in the running loop, keeps it going, ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import cast

import structlog

from agnt5_engine.transport.base import Member, RetriableError, TopicPartition, TransportError
from agnt5_engine.transport.faust_app import EngineApp
from agnt5_engine.transport.sink_consumer import SinkConsumer

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0

log = structlog.stdlib.get_logger(__name__)


class FaustMembership:
    """A membership that outlives its Faust apps: when one fails for the broker's sake, a new one takes its place.

    `retriable` says whether an error means "not now". What the sink raises ends the membership, and so does any other
    TransportError, or whatever else fails at the first start: `start` or `failed` raises it.
    """

    def __init__(self, new_app: Callable[[], EngineApp], retriable: Callable[[BaseException], bool]) -> None:
        self._new_app = new_app
        self._retriable = retriable
        self._app: EngineApp | None = None
        self._runner: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Join. Returns after the first attempt, even when the broker is away: joining then goes on by itself."""
        if self._runner is not None:
            raise RuntimeError("this membership was started before; make a new one")
        attempted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner = asyncio.create_task(self._run(attempted), name="agnt5-membership")
        await asyncio.wait((attempted, self._runner), return_when=asyncio.FIRST_COMPLETED)
        if self._runner.done():
            self._runner.result()

    async def failed(self) -> None:
        """Wait until this membership cannot go on, and raise why. Returns when it was stopped."""
        if self._runner is None:
            raise RuntimeError("this membership was not started")
        await asyncio.wait((self._runner,))
        if not self._runner.cancelled():
            self._runner.result()

    async def stop(self, *, leave: bool) -> None:
        runner = self._runner
        if runner is None:
            return
        if self._stopping or runner.done():
            await asyncio.wait((runner,))
            return
        self._stopping = True
        app = self._app
        if app is not None and app._consumer is not None:
            app.consumer.leave_on_stop = leave
        runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(asyncio.wait((runner,)))

    async def _run(self, attempted: asyncio.Future[None]) -> None:
        delay = FIRST_DELAY
        while True:
            app = self._app = self._new_app()
            try:
                try:
                    await app.start()
                    if not attempted.done():
                        attempted.set_result(None)
                    delay = FIRST_DELAY
                    await app._crashed.wait()
                finally:
                    await self._end(app)
                reason = app.crash_reason or RetriableError("Faust stopped without a reason")
            except Exception as error:
                reason = error
            failure = app.consumer.sink_failure if app._consumer is not None else None
            if failure is not None:
                raise failure
            if not self._retriable(reason) and (isinstance(reason, TransportError) or not attempted.done()):
                raise reason
            log.warning("membership_lost", error=str(reason) or repr(reason), retry_in=delay)
            if not attempted.done():
                attempted.set_result(None)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _end(self, app: EngineApp) -> None:
        """Let the sink save what it can, then stop the app; not to be interrupted."""

        async def end() -> None:
            try:
                if app._consumer is not None:
                    await app.consumer.withdraw()
            finally:
                self._app = None
                await app.stop()

        ending = asyncio.create_task(end())
        interruption: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait((ending,))
            except asyncio.CancelledError as error:  # asked to stop while a lost app is being ended
                interruption = error
        if interruption is not None:
            raise interruption
        # Faust cancels what waits for a service of its that has crashed; nobody has asked us to stop.
        if not ending.cancelled():
            ending.result()

    # -- the rest goes to the consumer that is there now; what it does not have, it ignores

    @property
    def _consumer(self) -> SinkConsumer | None:
        app = self._app
        return cast(SinkConsumer, app.consumer) if app is not None and app._consumer is not None else None

    def seek(self, source: TopicPartition, offset: int) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_seek(source, offset)

    def pause(self, source: TopicPartition) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_pause(source)

    def resume(self, source: TopicPartition) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_resume(source)

    def known(self, source: TopicPartition, next_offset: int) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_known(source, next_offset)

    def missed(self, source: TopicPartition) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_missed(source)

    def acked(self, source: TopicPartition, next_offset: int) -> None:
        if (consumer := self._consumer) is not None:
            consumer.sink_acked(source, next_offset)

    async def pin(self, positions: Mapping[TopicPartition, int]) -> None:
        if (consumer := self._consumer) is not None:
            await consumer.sink_pin(positions)

    async def members(self) -> list[Member]:
        consumer = self._consumer
        return await consumer.group_members() if consumer is not None else []
