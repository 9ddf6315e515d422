"""The log and the group on a Kafka cluster. `open_log` is the way in; `Transport` is what Faust is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agnt5_engine.transport.kafka.log import KafkaLog

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings

__all__ = ["KafkaLog", "open_log"]


def open_log(settings: Settings, *, patience: float = float("inf")) -> KafkaLog:
    """The log of `AGNT5_BROKER=kafka://...`. It connects with the first call; `patience` (s): see `KafkaLog`."""
    return KafkaLog(settings.kafka_options(), client_id=settings.instance_id or "agnt5", patience=patience)
