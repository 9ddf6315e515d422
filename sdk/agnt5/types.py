"""What starts a workflow by itself: `event`, `webhook`, `cron`, `every`; and the envelope of what started it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic_core import from_json

from agnt5.codec import encode_plain
from agnt5.errors import InputError
from agnt5.policies import LONGEST_MS

Overlap = Literal["skip", "allow", "queue"]
CatchUp = Literal["one", "skip", "all"]
Chosen: TypeAlias = "str | Callable[[Any], Any] | None"
"""How a session or user is found in an event's value: a field's name (dotted for a nested one) or a callable."""


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """Every record of a Kafka topic starts a run. See `event`."""

    topic: str
    filter: Callable[[Any], Any] | None = None
    session: Chosen = None
    user: Chosen = None

    def __post_init__(self) -> None:
        check_topic(self.topic)
        _check_callable("filter", self.filter)
        for name in ("session", "user"):
            chosen = getattr(self, name)
            if isinstance(chosen, str):
                if not chosen:
                    raise ValueError(
                        f"{name} of event({self.topic!r}) is empty; write the name of a field of the value"
                    )
            else:
                _check_callable(name, chosen, "a field's name or a callable")

    def accepts(self, value: Any) -> bool:
        """Whether a run is started for this value. Raises whatever the filter raises."""
        return self.filter is None or bool(self.filter(value))

    def session_id(self, value: Any) -> str | None:
        """The session that this value's run belongs to; None: one of its own. Raises InputError when it names none."""
        return _choose("session", self.session, value)

    def user_id(self, value: Any) -> str | None:
        """The user that this value's run belongs to. Raises InputError when it names none."""
        return _choose("user", self.user, value)

    def describe(self) -> dict[str, Any]:
        """For people and JSON."""
        return {"kind": "event", "topic": self.topic}


@dataclass(frozen=True, slots=True)
class WebhookTrigger:
    """A verified webhook starts a run. See `webhook`."""

    source: str
    event: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise TypeError(f"webhook source must be text, not {self.source!r}")
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,49}", self.source):
            raise ValueError(
                f"webhook source {self.source!r}: write it in small letters, digits, '_' and '-', as in "
                f"/v1/webhooks/{'-'.join(re.findall('[a-z0-9]+', self.source.lower())) or 'stripe'}"
            )
        if self.event is not None and (not isinstance(self.event, str) or not self.event):
            raise ValueError(f"webhook event must be the provider's event type or None, not {self.event!r}")

    def accepts(self, event_type: str | None) -> bool:
        """Whether a run is started for an event of this type."""
        return self.event is None or self.event == event_type

    def fields(self, body: Any) -> Any:
        """Where in the body the workflow's input is: Stripe keeps the object at `data.object`."""
        if self.source == "stripe" and isinstance(body, Mapping):
            data = body.get("data")
            if isinstance(data, Mapping) and isinstance(data.get("object"), Mapping):
                return data["object"]
        return body

    def describe(self) -> dict[str, Any]:
        """For people and JSON."""
        return {"kind": "webhook", "source": self.source, "event": self.event}


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """A schedule starts runs. See `cron`."""

    expr: str
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"

    def __post_init__(self) -> None:
        if not isinstance(self.expr, str):
            raise TypeError(f"cron expression must be text, not {self.expr!r}")
        fields = self.expr.split()
        if len(fields) != 5:
            raise ValueError(
                f"cron expression {self.expr!r} has {len(fields)} fields; it needs five: minute, hour, day of month, "
                "month, day of week (such as '0 9 * * MON'). For seconds use every(seconds)"
            )
        object.__setattr__(self, "expr", " ".join(fields))
        if not isinstance(self.timezone, str):
            raise TypeError(f"cron timezone must be a name such as 'Europe/Berlin', not {self.timezone!r}")
        zone = _zone(self.timezone)
        try:
            next(CronSim(self.expr, datetime(2024, 1, 1, tzinfo=zone)))
        except (CronSimError, ValueError) as error:
            raise ValueError(f"cron expression {self.expr!r}: {error}") from None
        except StopIteration:
            raise ValueError(f"cron expression {self.expr!r} never comes true") from None
        _one_of("overlap", self.overlap, Overlap)
        _one_of("catch_up", self.catch_up, CatchUp)

    def after(self, moment_ms: int) -> int:
        """The first due time after a moment, both in milliseconds since the epoch."""
        start = datetime.fromtimestamp(moment_ms // 1000, tz=UTC).astimezone(_zone(self.timezone))
        times = (int(due.timestamp()) * 1000 for due in CronSim(self.expr, start))
        # In the hour that comes twice when clocks are set back, CronSim begins with what was due the first time.
        return next(due for due in times if due > moment_ms)

    def describe(self) -> dict[str, Any]:
        """For people and JSON."""
        return {
            "kind": "cron",
            "expr": self.expr,
            "timezone": self.timezone,
            "overlap": self.overlap,
            "catch_up": self.catch_up,
        }


@dataclass(frozen=True, slots=True)
class EveryTrigger:
    """A fixed interval starts runs, counted from the epoch, so that every processor means the same moments."""

    interval_ms: int
    overlap: Overlap = field(default="skip", kw_only=True)
    catch_up: CatchUp = field(default="one", kw_only=True)

    def after(self, moment_ms: int) -> int:
        """The first due time after a moment, both in milliseconds since the epoch."""
        return (moment_ms // self.interval_ms + 1) * self.interval_ms

    def describe(self) -> dict[str, Any]:
        """For people and JSON."""
        return {"kind": "every", "seconds": self.interval_ms / 1000}


TriggerSpec: TypeAlias = EventTrigger | WebhookTrigger | CronTrigger | EveryTrigger


# ------------------------------------------------------------------ what users write


def event(
    topic: str, filter: Callable[[Any], Any] | None = None, session: Chosen = None, user: Chosen = None
) -> EventTrigger:
    """Start a run for every record of a Kafka topic.

    `filter`: a callable on the value; a run is started when it returns something true. `session`, `user`: the name of
    the value's field that holds the session's or user's ID (dotted for a nested one), or a callable on the value.
    Raises ValueError or TypeError that says what to write."""
    return EventTrigger(topic, filter, session, user)


def webhook(source: str, event: str | None = None) -> WebhookTrigger:
    """Start a run for every verified webhook of a provider (`POST /v1/webhooks/{source}`), or only those of one event
    type. The body's fields are the workflow's input; for Stripe those of its `data.object`."""
    return WebhookTrigger(source, event)


def cron(
    expr: str,
    timezone: str = "UTC",
    overlap: Overlap = "skip",
    catch_up: CatchUp = "one",
) -> CronTrigger:
    """Start runs by a five-field cron expression, in a time zone.

    `overlap`: what happens when a run is due while the last one still goes on: `skip` it, `allow` both, or `queue` it.
    `catch_up`: what happens to due times that passed while nothing was running: start `one`, `skip` them, or `all`."""
    return CronTrigger(expr, timezone, overlap, catch_up)


def every(seconds: float | timedelta) -> EveryTrigger:
    """Start a run every so many seconds (a number or a timedelta, at least a millisecond)."""
    return EveryTrigger(_milliseconds("every", seconds))


# ------------------------------------------------------------------ the envelope


@dataclass(frozen=True, slots=True)
class Envelope:
    """The record that started a run, for a workflow parameter named `event`.

    `timestamp`: milliseconds since the epoch, as Kafka has it. `value`: the parsed value. What did not come from a
    topic has no topic, partition and offset."""

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timestamp: int | None = None
    value: Any = None

    def to_json(self) -> bytes:
        return encode_plain({name: getattr(self, name) for name in Envelope.__slots__})

    @classmethod
    def from_json(cls, data: bytes) -> Envelope:
        return cls.from_object(from_json(data))

    @classmethod
    def from_object(cls, found: Any) -> Envelope:
        """An object with an envelope's fields as an envelope; anything else as the value of one."""
        if isinstance(found, dict) and "value" in found and found.keys() <= set(cls.__slots__):
            return cls(**found)
        return cls(value=found)


# ------------------------------------------------------------------ checks


def check_topic(topic: object) -> str:
    """A topic name that Kafka takes. Raises TypeError or ValueError."""
    if not isinstance(topic, str):
        raise TypeError(f"topic must be text, not {topic!r}")
    if topic in ("", ".", "..") or len(topic) > 249 or not re.fullmatch(r"[A-Za-z0-9._-]+", topic):
        raise ValueError(
            f"topic {topic!r} is not a Kafka topic's name: 1 to 249 letters, digits, '.', '_' and '-', not '.' or '..'"
        )
    return topic


def _milliseconds(what: str, seconds: float | timedelta) -> int:
    amount: Any = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise TypeError(f"{what} takes seconds (a number) or a timedelta, not {seconds!r}")
    if not math.isfinite(amount) or amount * 1000 < 1:
        raise ValueError(f"{what} takes seconds greater than 0 (at least 0.001), not {seconds!r}")
    if amount * 1000 > LONGEST_MS:
        raise ValueError(f"{what} takes seconds, at most a thousand years of them, not {seconds!r}")
    return round(amount * 1000)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; a folder's name gives an OSError
        raise ValueError(f"time zone {name!r} is unknown; write one such as 'Europe/Berlin' or 'UTC'") from None


def _one_of(name: str, value: object, kind: Any) -> None:
    allowed = get_args(kind)
    if value not in allowed:
        raise ValueError(f"{name} must be {', '.join(map(repr, allowed))}, not {value!r}")


def _check_callable(name: str, value: object, wanted: str = "a callable on the event's value") -> None:
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"{name} must be {wanted}, not {value!r}")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{name} must be a plain function: it is asked while events are read, and cannot await")


def _choose(what: str, chosen: Chosen, value: Any) -> str | None:
    if chosen is None:
        return None
    if callable(chosen):
        found = chosen(value)
        name = getattr(chosen, "__name__", what)
        if found is None:
            return None
    else:
        found, name = value, chosen
        parts = [chosen] if isinstance(value, Mapping) and chosen in value else chosen.split(".")
        for part in parts:
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
        told = "is missing" if found is None else f"is {found!r}"
        raise InputError({name: f"{told}, but the run's {what} is to be named by it (text or a whole number)"})
    return str(found)
