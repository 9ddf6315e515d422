"""How often, how long and where a function is tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic_core import from_json, to_json

from agnt5.errors import DefinitionError, EncodeError, FatalError, InputError, type_name

BackoffType = Literal["exponential", "linear", "constant"]
JITTER = 0.1
"""The largest part of a wait that is added to it at random, so that many failed steps do not come back at once."""

LONGEST_MS = 1000 * 365 * 86_400_000
"""A thousand years. What is due much later has no date that could be shown, and in the end no number in a record."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a function is tried, and how long the waits between are.

    `max_attempts`: calls in all, the first included. Intervals: milliseconds. `retry_on`: only these exception types
    (or one type) are tried again; None: all but `FatalError`. A wait is at most `max_interval_ms` (plus jitter)."""

    max_attempts: int = 3
    initial_interval_ms: int = 1000
    max_interval_ms: int = 60_000
    retry_on: Iterable[type[BaseException]] | type[BaseException] | None = None

    def __post_init__(self) -> None:
        _whole("max_attempts", self.max_attempts, 1, "1 means: no second try")
        _interval("initial_interval_ms", self.initial_interval_ms, 0)
        _interval("max_interval_ms", self.max_interval_ms, 0)
        if self.retry_on is not None:
            object.__setattr__(self, "retry_on", _exception_types(self.retry_on))


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How the waits grow: `exponential` (times `multiplier` each), `linear` (one initial interval more each) or
    `constant`."""

    type: BackoffType = "exponential"
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        kind = getattr(self.type, "value", self.type)
        if kind not in get_args(BackoffType):
            raise ValueError(f"backoff type {self.type!r} is unknown; write 'exponential', 'linear' or 'constant'")
        object.__setattr__(self, "type", str(kind))
        number = self.multiplier
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"backoff multiplier must be a number, not {number!r}")
        if not math.isfinite(number) or number < 1:
            raise ValueError(f"backoff multiplier must be 1 or more, not {number!r}")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """All that decides how a step is run. Travels with a step command as JSON where it is not the function's own."""

    max_attempts: int = 3
    initial_interval_ms: int = 1000
    max_interval_ms: int = 60_000
    retry_on: tuple[str, ...] | None = None  # qualified type names: they outlive the process, types do not
    backoff: BackoffType = "exponential"
    multiplier: float = 2.0
    timeout_ms: int | None = None
    queue: str | None = None

    def delay_ms(self, attempt: int, jitter: float = 0.0) -> int:
        """Milliseconds to wait after failed attempt number `attempt` (from 1). `jitter` is drawn from 0..1."""
        match self.backoff:
            case "exponential":
                try:
                    wait = self.initial_interval_ms * self.multiplier ** (attempt - 1)
                except OverflowError:
                    wait = self.max_interval_ms
            case "linear":
                wait = self.initial_interval_ms * attempt
            case "constant":
                wait = self.initial_interval_ms
        return round(min(wait, self.max_interval_ms) * (1 + JITTER * jitter))

    def retryable(self, exc: BaseException, attempt: int) -> bool:
        """Whether attempt number `attempt` (from 1), which failed with `exc`, is followed by another."""
        if attempt >= self.max_attempts or isinstance(exc, (FatalError, EncodeError, InputError, DefinitionError)):
            return False  # another attempt changes neither a value that cannot be kept nor input that does not fit
        if self.retry_on is None:
            return isinstance(exc, Exception)
        return any(type_name(cls) in self.retry_on for cls in type(exc).__mro__)

    def to_json(self) -> bytes:
        """Only what differs from the defaults."""
        default = _DEFAULTS
        return to_json({name: value for name in _NAMES if (value := getattr(self, name)) != getattr(default, name)})

    @classmethod
    def from_json(cls, data: bytes) -> StepOptions:
        """Unknown fields, of a later version, are ignored."""
        fields = from_json(data)
        if fields.get("retry_on") is not None:
            fields["retry_on"] = tuple(fields["retry_on"])
        return cls(**{name: fields[name] for name in _NAMES if name in fields})

    def changed(
        self,
        *,
        retries: int | Mapping[str, Any] | RetryPolicy | None = None,
        backoff: str | Mapping[str, Any] | BackoffPolicy | None = None,
        timeout_ms: int | None = None,
        queue: str | None = None,
    ) -> StepOptions:
        """The same options but for what is given. Raises ValueError or TypeError that names the wrong value."""
        fields: dict[str, Any] = {}
        if retries is not None:
            fields.update(_retry_fields(retries))
        if backoff is not None:
            policy = _backoff_policy(backoff)
            fields.update(backoff=policy.type, multiplier=float(policy.multiplier))
        if timeout_ms is not None:
            fields["timeout_ms"] = _interval("timeout_ms", timeout_ms, 1)
        if queue is not None:
            fields["queue"] = check_queue(queue)
        return replace(self, **fields)


_NAMES = StepOptions.__slots__
_DEFAULTS = StepOptions()


def check_queue(queue: object) -> str:
    """A queue's name becomes part of a topic's: letters, digits, '.', '_' and '-', at most 100."""
    if not isinstance(queue, str):
        raise TypeError(f"queue must be a name, not {queue!r}")
    if not 0 < len(queue) <= 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in queue):
        raise ValueError(f"queue {queue!r}: use letters, digits, '.', '_' and '-', at most 100 of them")
    return queue


def _retry_fields(retries: int | Mapping[str, Any] | RetryPolicy) -> dict[str, Any]:
    if isinstance(retries, int) and not isinstance(retries, bool):
        return {"max_attempts": _whole("retries", retries, 1, "it counts all attempts: 1 means no second try")}
    if isinstance(retries, Mapping):
        _known("retries", retries, RetryPolicy.__slots__)
        policy = RetryPolicy(**retries)
    elif isinstance(retries, RetryPolicy):
        policy = retries
    else:
        raise TypeError(f"retries must be a number of attempts, a dict or a RetryPolicy, not {retries!r}")
    types: Any = policy.retry_on
    return {
        "max_attempts": policy.max_attempts,
        "initial_interval_ms": policy.initial_interval_ms,
        "max_interval_ms": policy.max_interval_ms,
        "retry_on": None if types is None else tuple(type_name(cls) for cls in types),
    }


def _backoff_policy(backoff: str | Mapping[str, Any] | BackoffPolicy) -> BackoffPolicy:
    if isinstance(backoff, BackoffPolicy):
        return backoff
    if isinstance(backoff, str):
        return BackoffPolicy(type=backoff)  # type: ignore[arg-type]  # checked there
    if isinstance(backoff, Mapping):
        _known("backoff", backoff, BackoffPolicy.__slots__)
        return BackoffPolicy(**backoff)
    raise TypeError(f"backoff must be 'exponential', 'linear', 'constant', a dict or a BackoffPolicy, not {backoff!r}")


def _known(what: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise TypeError(f"{what} has no {', '.join(map(repr, unknown))}; it has {', '.join(names)}")


def _whole(name: str, value: object, least: int, hint: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}" + (f" ({hint})" if hint else ""))
    return value


def _interval(name: str, value: object, least: int) -> int:
    whole = _whole(name, value, least)
    if whole > LONGEST_MS:
        raise ValueError(f"{name} must be at most {LONGEST_MS} (a thousand years), not {whole}")
    return whole


def _exception_types(given: object) -> tuple[type[BaseException], ...]:
    types = (given,) if isinstance(given, type) else given
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"retry_on must be exception types, not {given!r}")
    found = tuple(types)
    for cls in found:
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            raise TypeError(f"retry_on must be exception types; {cls!r} is not one")
    return found
