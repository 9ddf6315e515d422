"""The Faust app this engine runs on: group membership and consumption, and nothing that Faust would do besides.

Faust's tables, leader topic, reply topic, web server, worker and data directory stay off: recovery, HTTP, logging and
signals are the engine's own. See docs/faust.md for what stock Faust would do with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faust
from faust.tables.manager import TableManager
from faust.transport.producer import Producer

from agnt5_engine.transport.base import Sink

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one membership is made of."""

    broker: str
    """As in AGNT5_BROKER, untouched: Faust's own URL type lower-cases hosts."""
    app_id: str
    """The consumer group."""
    instance_id: str
    advertised_url: str
    journal: str
    partitions: int
    triggers: frozenset[str]
    sink: Sink
    settings: Settings

    @property
    def topics(self) -> frozenset[str]:
        """Everything that goes to the sink."""
        return self.triggers | {self.journal}


class NoTables(TableManager):  # type: ignore[misc]
    """Stock recovery sleeps, replays and commits on its own terms; the engine recovers its tables itself."""

    async def on_start(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        await self.app._fetcher.stop()

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    async def on_rebalance(self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0) -> None:
        pass

    async def wait_until_recovery_completed(self) -> bool:
        return False


class NoProducer(Producer):  # type: ignore[misc]
    """Nothing is produced through Faust: its producer acknowledges before the log does."""

    async def on_start(self) -> None:
        pass

    async def flush(self) -> None:
        pass


class EngineApp(faust.App):  # type: ignore[misc]
    """One membership's app. Not reusable: a new start makes a new one."""

    wiring: Wiring

    def __init__(self, wiring: Wiring, broker: str, **options: Any) -> None:
        self.wiring = wiring
        super().__init__(
            wiring.app_id,
            broker=broker,
            env={},  # Faust would let bare variables such as BROKER_URL override what is set here
            TableManager=NoTables,
            autodiscover=False,
            broker_commit_interval=0.5,
            broker_client_id=wiring.instance_id,
            consumer_auto_offset_reset="earliest",
            processing_guarantee="at_least_once",
            reply_create_topic=False,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            **options,
        )

    async def on_first_start(self) -> None:
        pass  # stock Faust makes data directories in the working directory
