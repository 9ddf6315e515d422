"""The log and the group, whoever keeps them: `open_log` and `make_membership` choose by the broker's URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agnt5_engine.transport.base import Log, Membership, Sink, TransportError

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings

__all__ = ["make_membership", "open_log"]


def open_log(broker: str, settings: Settings) -> Log:
    """The log of `embedded://DIR` or `kafka://HOST:PORT[,...]`. Raises TransportError when it cannot be used."""
    if _scheme(broker) == "embedded":
        from agnt5_engine.transport.embedded.log import open_log as open_embedded

        return open_embedded(broker)
    from agnt5_engine.transport import kafka

    return kafka.open_log(settings)


def make_membership(
    url: str,
    *,
    app_id: str,
    instance_id: str,
    advertised_url: str,
    journal: str,
    partitions: int,
    triggers: Sequence[str],
    sink: Sink,
    settings: Settings,
) -> Membership:
    """A membership of the group `app_id` that consumes `journal` and `triggers` into `sink`, once it is started.

    `url` is the broker's. The journal must exist, with that many partitions; a trigger that does not is consumed as
    soon as it does.
    """
    from agnt5_engine.transport.faust_app import Wiring

    wiring = Wiring(url, app_id, instance_id, advertised_url, journal, partitions, frozenset(triggers), sink, settings)
    if _scheme(url) == "embedded":
        from agnt5_engine.transport.embedded.consumer import make_membership as make_embedded

        return make_embedded(wiring)
    from agnt5_engine.transport import kafka

    return kafka.make_membership(wiring)


def _scheme(broker: str) -> str:
    scheme = broker.partition("://")[0]
    if scheme not in ("embedded", "kafka"):
        raise TransportError(f"{broker!r} names no log: write embedded://DIR or kafka://HOST:PORT")
    return scheme
