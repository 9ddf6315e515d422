"""Records of users' topics into requests to start runs: decoded once, bound for each workflow that is subscribed.

What one workflow cannot take becomes a dead letter of that workflow; the others start. Nothing here does I/O but the
fetching of schemas (`prepare`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from agnt5.binding import check_input
from agnt5.client.models import shown, shown_key
from agnt5.errors import InputError
from agnt5.types import EventTrigger
from agnt5.workflow import Workflow
from agnt5_engine.ports import StartRequest
from agnt5_engine.runs.outbox import EVENT_ID
from agnt5_engine.transport.base import Record, TopicPartition
from agnt5_engine.triggers.dead_letters import TOO_LARGE, TRIGGER_FAILED, UNBOUND, UNDECODABLE, Letter
from agnt5_engine.triggers.schema_registry import SchemaRegistry
from agnt5_engine.triggers.values import Raw, UndecodableError, value_of

#: Stands for any envelope while an input is only checked.
_SOME_ENVELOPE = b'{"value":null}'
#: An input with more brackets than this may be nested too deep, and is checked the slow way; so is one that may hold a
#: number beyond a double's range.
_SHALLOW = 100
#: Room that the journal has beyond the input (AGNT5_MAX_PAYLOAD_BYTES) for an envelope and names, bytes.
ENVELOPE_ROOM = 64 * 1024


class Decoded(NamedTuple):
    """What came of one record: runs to start, and what could not be."""

    requests: list[StartRequest]
    letters: list[Letter]


class EventTriggers:
    """The event triggers of `workflows`.

    `registry`: for events in Confluent's wire format; `max_payload`: bytes that one input may have."""

    def __init__(
        self,
        workflows: Mapping[str, Workflow[Any]],
        registry: SchemaRegistry | None = None,
        max_payload: int = 2**20,
    ) -> None:
        self._registry = registry
        self._by_topic: dict[str, list[_Subscription]] = {}
        for workflow in workflows.values():
            by_topic: dict[str, list[EventTrigger]] = {}
            for trigger in workflow.triggers:
                if isinstance(trigger, EventTrigger):
                    by_topic.setdefault(trigger.topic, []).append(trigger)
            for topic, triggers in by_topic.items():
                self._by_topic.setdefault(topic, []).append(_Subscription(workflow, triggers, max_payload))

    def topics(self) -> list[str]:
        """Topics that some workflow is triggered by."""
        return sorted(self._by_topic)

    def workflows(self, topic: str) -> list[str]:
        """The workflows that are triggered by a topic."""
        return [subscription.name for subscription in self._by_topic.get(topic, ())]

    async def prepare(self, records: Iterable[Record]) -> None:
        """Fetch what `requests` will need for these records. To be awaited first, once for a batch."""
        if self._registry is not None:
            await self._registry.fetch(records)

    def requests(self, source: TopicPartition, record: Record, only: str | None = None) -> Decoded:
        """The runs that the record starts. `only`: for this workflow alone, as a letter of its own is redriven."""
        subscriptions: Sequence[_Subscription] = self._by_topic.get(source.topic, ())
        if only is not None:
            subscriptions = [s for s in subscriptions if s.name == only]
        found = Decoded([], [])
        if not subscriptions:
            return found
        try:
            value = value_of(record, self._registry)
        except UndecodableError as error:
            found.letters.append(Letter(UNDECODABLE, str(error), source, record, only))
            return found
        seen = value.value if isinstance(value, Raw) else value
        event = _Event(source, record, value, seen)
        for subscription in subscriptions:
            try:
                request = subscription.request(event)
            except _NotTaken as error:
                found.letters.append(Letter(error.reason, error.detail, source, record, subscription.name))
            else:
                if request is not None:
                    found.requests.append(request)
        return found


class _NotTaken(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail


class _Event:
    """One record, decoded; what several workflows need of it is made once."""

    __slots__ = ("_envelope", "dedupe", "record", "seen", "source", "trigger", "value")

    def __init__(self, source: TopicPartition, record: Record, value: Any, seen: Any) -> None:
        self.source = source
        self.record = record
        self.value = value
        self.seen = seen  # by filters
        self._envelope: bytes | None = None
        topic, partition = source
        offset = record.offset
        self.trigger: dict[str, Any] = {"kind": "event", "topic": topic, "partition": partition, "offset": offset}
        self.dedupe = ""
        for name, data in record.headers:
            if name == EVENT_ID and data:
                self.dedupe = self.trigger["event_id"] = data.decode(errors="replace")
        if not self.dedupe:
            # With its time: in a topic that was deleted and made anew other events have the same offsets.
            self.dedupe = f"{topic}/{partition}/{offset}@{record.time}"

    def envelope(self) -> bytes:
        """For a parameter named `event` (`agnt5.types.Envelope`)."""
        if self._envelope is None:
            record = self.record
            self._envelope = to_json(
                {
                    "topic": self.source.topic,
                    "partition": self.source.partition,
                    "offset": record.offset,
                    "key": shown_key(record.key),
                    "headers": {name: shown_key(data) for name, data in record.headers},
                    "timestamp": record.time,
                    "value": shown(self.value.data) if isinstance(self.value, Raw) else self.value,
                }
            )
        return self._envelope


class _Subscription:
    """One workflow's triggers on one topic. The first that accepts a value starts the run: a record starts one."""

    __slots__ = ("_binder", "_max", "_one", "_takes_bytes", "_takes_event", "_triggers", "name", "workflow")

    def __init__(self, workflow: Workflow[Any], triggers: list[EventTrigger], max_payload: int) -> None:
        self.workflow = workflow
        self.name = workflow.name
        self._triggers = triggers
        self._max = max_payload
        self._binder = binder = workflow.binder
        self._takes_event = binder.takes_event
        self._one = binder.names[0] if len(binder.names) == 1 and not binder.takes_event else None
        self._takes_bytes = False
        if self._one is not None:
            shape = workflow.input_schema().get("properties", {}).get(self._one, {})
            self._takes_bytes = str(shape.get("format", "")).startswith(("base64", "binary"))

    def request(self, event: _Event) -> StartRequest | None:
        """None: no trigger accepts it. Raises _NotTaken."""
        value = event.seen
        if isinstance(event.value, Raw) and not (self._takes_event or self._takes_bytes):
            raise _NotTaken(UNDECODABLE, event.value.problem)
        if event.value.__class__ is dict and event.value.get("workflow") == self.name and _is_outcome(event.record):
            return None  # its own outcome would start it again, and again
        trigger = session = user = None
        try:
            for candidate in self._triggers:
                if candidate.filter is None or candidate.accepts(value):
                    trigger = candidate
                    break
            if trigger is None:
                return None
            if trigger.session is not None:
                session = trigger.session_id(value)
            if trigger.user is not None:
                user = trigger.user_id(value)
        except InputError as error:
            raise _NotTaken(UNBOUND, str(error)) from None
        except BaseException as error:
            what = "its session or user" if trigger is not None else "its filter"
            raise _NotTaken(TRIGGER_FAILED, f"{what} raised {type(error).__name__}: {error}") from None
        envelope = event.envelope() if self._takes_event else None
        try:
            input = self._bind(event.value)
        except InputError as error:
            raise _NotTaken(UNBOUND, str(error)) from None
        except BaseException as error:
            raise _NotTaken(TRIGGER_FAILED, f"binding its input raised {type(error).__name__}: {error}") from None
        size = len(input)
        around = len(to_json((event.dedupe, session, user))) + len(envelope or b"")
        if size > self._max or size + around > self._max + ENVELOPE_ROOM:
            raise _NotTaken(
                TOO_LARGE,
                f"its input has {size:,} bytes as JSON, and what goes with it {around:,}; at most {self._max:,} are "
                f"taken (AGNT5_MAX_PAYLOAD_BYTES), and {ENVELOPE_ROOM:,} more for the rest",
            )
        return StartRequest(
            workflow=self.name,
            input=input,
            trigger=event.trigger,
            session_id=session,
            user_id=user,
            dedupe=event.dedupe,
            envelope=envelope,
        )

    def _bind(self, value: Any) -> bytes:
        """The input as it is kept. Raises InputError."""
        binder = self._binder
        if value.__class__ is dict:
            given = value
        elif self._takes_event:
            given = {}
        elif isinstance(value, Raw):
            assert self._one is not None
            given = {self._one: base64.urlsafe_b64encode(value.data).decode()}
        elif self._one is not None:
            given = {self._one: value}
        else:
            # Says what it should have been.
            return check_input(self.workflow, to_json(value), False)
        kept = to_json(binder.known(given))
        if kept.count(b"[") + kept.count(b"{") > _SHALLOW or b"Infinity" in kept:
            return check_input(self.workflow, kept, False, _SOME_ENVELOPE if self._takes_event else None)
        binder.bind(kept, strict=False, envelope=_SOME_ENVELOPE if self._takes_event else None)
        return kept


def _is_outcome(record: Record) -> bool:
    return record.value is not None and record.value[:2] == b"\xc3\x01"
