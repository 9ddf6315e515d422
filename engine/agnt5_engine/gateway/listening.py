"""The address of the gateway: taken before anything else starts, so that a port in use is known at once."""

from __future__ import annotations

import errno
import socket

import structlog

from agnt5_engine.settings import Settings

PORTS_TRIED = 100

log = structlog.stdlib.get_logger(__name__)


class AddressError(OSError):
    """The address cannot be listened on. The message says what to do."""


def bind(settings: Settings) -> socket.socket:
    """A listening socket by the rules of AGNT5_HTTP: the default's next free port when the default is taken, while a
    taken port that someone chose is an AddressError."""
    host, port = settings.http_host, settings.http_port
    last: OSError | None = None
    for candidate in (port,) if settings.http_is_explicit else range(port, port + PORTS_TRIED):
        try:
            bound = _listen(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise AddressError(error.errno, f"AGNT5_HTTP={settings.http}: {error.strerror or error}") from None
            last = error
            continue
        if candidate != port:
            log.warning("http.next_port", taken=port, port=candidate)
        return bound
    remedy = "stop what listens there, or choose another port"
    what = f"AGNT5_HTTP={settings.http}: the port is taken"
    if not settings.http_is_explicit:
        what = f"the ports {port} to {port + PORTS_TRIED - 1} of {host} are all taken"
        remedy = "set AGNT5_HTTP to a free one"
    raise AddressError(last.errno if last else errno.EADDRINUSE, f"{what}; {remedy}")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
