"""The workflows of this process, as the ways in need them: their names, their inputs, what triggers them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from agnt5 import registry
from agnt5.binding import check_input
from agnt5.client.models import WorkflowInfo
from agnt5.types import WebhookTrigger


class Subscription(NamedTuple):
    """A workflow that wants a webhook source's deliveries: of one type, or (None) of all; as they came, too, in a
    parameter named `event`, or only their fields."""

    workflow: str
    event: str | None
    takes_event: bool = False


class Catalog(Protocol):
    """What can be started. Raises LookupError for a workflow that is not there."""

    def names(self) -> Collection[str]: ...

    def info(self, name: str) -> WorkflowInfo: ...

    def bind(self, name: str, payload: bytes, *, strict: bool, envelope: bytes | None = None) -> bytes:
        """The input as it is kept, from the JSON that was sent. `strict`: unknown fields and repeated keys are refused,
        else ignored. `envelope`: JSON of what started the run, for a parameter named `event`. Raises InputError."""
        ...

    def webhooks(self, source: str) -> Sequence[Subscription]: ...


class RegistryCatalog:
    """Every workflow that was registered by importing its module."""

    def names(self) -> Collection[str]:
        return registry.workflows().keys()

    def info(self, name: str) -> WorkflowInfo:
        workflow = registry.workflow(name)
        triggers = [trigger.describe() for trigger in workflow.triggers]
        return WorkflowInfo(name=name, triggers=triggers, input_schema=workflow.input_schema())

    def bind(self, name: str, payload: bytes, *, strict: bool, envelope: bytes | None = None) -> bytes:
        return check_input(registry.workflow(name), payload, strict, envelope)

    def webhooks(self, source: str) -> Sequence[Subscription]:
        return [
            Subscription(workflow.name, trigger.event, workflow.binder.takes_event)
            for workflow in registry.workflows().values()
            for trigger in workflow.triggers
            if isinstance(trigger, WebhookTrigger) and trigger.source == source
        ]
