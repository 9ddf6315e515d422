"""Reaching a running processor: which address, which key."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from agnt5_engine.cli.exits import UNREACHABLE
from agnt5_engine.cli.terminal import fail

if TYPE_CHECKING:
    from agnt5.client import Client
    from agnt5_engine.settings import Settings

PATIENCE = 10.0
"""Seconds a command goes on asking while partitions change hands."""

Url = Annotated[
    str | None,
    typer.Option("--url", help="Address of a processor. Else AGNT5_URL, else the one noted in the data directory."),
]
Key = Annotated[str | None, typer.Option("--api-key", help="API key. Else AGNT5_API_KEY.")]


def client(url: str | None, api_key: str | None, patience: float = PATIENCE) -> Client:
    """A client for the processor meant. Exits with 4 when nobody listens there."""
    from agnt5.client import Client
    from agnt5_engine.settings import load_settings

    settings = load_settings(url=url)
    key = api_key or (settings.api_key.get_secret_value() if settings.api_key else None)
    return Client(address(settings), key, patience=patience)


def address(settings: Settings) -> str:
    """The address to talk to. Exits with 4 when nobody listens there."""
    from agnt5.client.sync import DEFAULT_URL
    from agnt5_engine.gateway.addresses import noted

    candidates = [settings.url] if settings.url else [*noted(settings.data_dir), DEFAULT_URL]
    found = next((candidate for candidate in candidates if listens(candidate)), None)
    if found is not None:
        return found
    if settings.url:
        remedy = "Is the processor running, and --url or AGNT5_URL right?"
    else:
        remedy = "Start one with `agnt5 dev MODULE` or `agnt5 processor MODULE`, or say where it is with --url."
    return fail(f"nobody listens at {' or '.join(dict.fromkeys(candidates))}. {remedy}", UNREACHABLE)


def listens(url: str) -> bool:
    """Whether something accepts connections there."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=3):
            return True
    except OSError:
        return False
