"""The workflows of this process, as the ways in need them: their names, their inputs, what triggers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from agnt5.client.models import WorkflowInfo


class Subscription(NamedTuple):
    """A workflow that wants a webhook source's deliveries: of one type, or (None) of all."""

    workflow: str
    event: str | None


class Catalog(Protocol):
    """Raises KeyError for a workflow that is not there."""

    def names(self) -> Sequence[str]: ...

    def info(self, name: str) -> WorkflowInfo: ...

    def bind(self, name: str, value: dict[str, Any], *, strict: bool) -> bytes:
        """The input as JSON bytes, once it fits the parameters. `strict`: unknown fields are refused, else dropped.
        Raises `agnt5.errors.InputError`."""
        ...

    def webhooks(self, source: str) -> Sequence[Subscription]: ...
