"""The log and the group on a Kafka cluster. `open_log` and `make_membership` are the ways in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agnt5_engine.transport.kafka.log import KafkaLog

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings
    from agnt5_engine.transport.faust_app import Wiring
    from agnt5_engine.transport.membership import FaustMembership

__all__ = ["KafkaLog", "make_membership", "open_log"]


def open_log(settings: Settings, *, patience: float = 10.0) -> KafkaLog:
    """The log of `AGNT5_BROKER=kafka://...`. It connects with the first call; `patience` (s): see `KafkaLog`."""
    return KafkaLog(settings.kafka_options(), client_id=settings.instance_id or "agnt5", patience=patience)


def make_membership(wiring: Wiring) -> FaustMembership:
    from agnt5_engine.transport.kafka.consumer import make_membership as make

    return make(wiring)


def __getattr__(name: str) -> Any:
    if name == "Transport":  # the entry point's name; imported late, because Faust takes half a second
        from agnt5_engine.transport.kafka.consumer import Transport

        return Transport
    raise AttributeError(name)
