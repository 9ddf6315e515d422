"""The log and the group, whoever keeps them: `open_log` and `make_membership` choose by the broker's URL."""

from __future__ import annotations

from typing import Any

from agnt5_engine.transport.base import Log, TransportError

__all__ = ["open_log"]


def open_log(broker: str, settings: Any) -> Log:
    """The log of `embedded://DIR` or `kafka://HOST:PORT[,...]`. Raises TransportError when it cannot be used."""
    scheme = broker.partition("://")[0]
    if scheme == "embedded":
        from agnt5_engine.transport.embedded.log import open_log as open_embedded

        return open_embedded(broker)
    if scheme == "kafka":
        from agnt5_engine.transport import kafka

        log: Log = kafka.open_log(settings)
        return log
    raise TransportError(f"{broker!r} names no log: write embedded://DIR or kafka://HOST:PORT")
