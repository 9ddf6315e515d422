"""Addresses in settings: of brokers, of what listens, of other servers."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

DEFAULT_HTTP = "127.0.0.1:8080"


def server(text: str) -> str:
    """One `host:port`; the port defaults to Kafka's 9092."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(\d+))?", text.strip())
    if not match or not 0 < int(match[2] or 9092) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT; write kafka://HOST:9092,HOST2:9092")
    return f"{match[1]}:{match[2] or 9092}"


def host_port(text: str) -> tuple[str, int]:
    """What `HOST:PORT` says; without a host, every address. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:/\[\]]*)):(\d+)", text.strip())
    if not match or not int(match[3]) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT; write for instance {DEFAULT_HTTP}")
    return match[1] or match[2] or "0.0.0.0", int(match[3])


def has_host(url: str) -> bool:
    """Whether the URL names a host, and no port that there cannot be."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redacted(url: str) -> str:
    """The URL without the user and password in it."""
    return re.sub(r"//[^/@\s]+@", "//***@", url)
