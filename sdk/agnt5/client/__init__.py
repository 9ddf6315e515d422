"""Talking to a running engine: `Client`, `AsyncClient`, and what they raise."""

from agnt5.client.asynchronous import AsyncClient
from agnt5.client.errors import (
    ApiError,
    ConflictError,
    InvalidError,
    NotAllowedError,
    NotFoundError,
    UnavailableError,
    WaitTimeoutError,
)
from agnt5.client.sync import Client
from agnt5.errors import RunError

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ConflictError",
    "InvalidError",
    "NotAllowedError",
    "NotFoundError",
    "RunError",
    "UnavailableError",
    "WaitTimeoutError",
]
