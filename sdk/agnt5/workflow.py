"""`@workflow`: a durable orchestrator, defined as an async function."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from typing import Any, Generic, NamedTuple, Protocol, cast, overload

from typing_extensions import TypeVar

from agnt5 import registry
from agnt5.binding import Binder, check_input
from agnt5.codec import Codec, check_text, encode_plain
from agnt5.errors import DefinitionError, EncodeError, InputError
from agnt5.function import Function
from agnt5.policies import LONGEST_MS
from agnt5.replay.protocol import RUN_ID
from agnt5.signature import Declaration, enclosing_names, place
from agnt5.types import CronTrigger, EventTrigger, EveryTrigger, TriggerSpec, WebhookTrigger

R = TypeVar("R", default=Any)
C = TypeVar("C")

RESERVED = frozenset({"resume"})
"""Names that are paths of the HTTP interface (`POST /v1/workflows/resume/{run_id}`)."""


class ChildOptions(NamedTuple):
    """How a child run differs from what it would inherit; None: inherited, or derived."""

    id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    detached: bool = False


class Workflow(Generic[R]):
    """A workflow with its name, its triggers, and the binding of its input.

    `timeout_ms`: how long a run may take in all, or None. `retries`: how often a failed run goes on again from what
    failed. `child`: how it runs as a child (`options`)."""

    __name__: str
    __qualname__: str
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_binder",
        "_codec",
        "_declaration",
        "_schema",
        "child",
        "fn",
        "name",
        "retries",
        "timeout_ms",
        "triggers",
    )

    def __init__(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        name: str,
        declaration: Declaration,
        triggers: tuple[TriggerSpec, ...] = (),
        timeout_ms: int | None = None,
        retries: int = 0,
    ) -> None:
        self.fn = fn
        self.name = name
        self.triggers = triggers
        self.timeout_ms = timeout_ms
        self.retries = retries
        self.child = ChildOptions()
        self._declaration = declaration
        self._binder: Binder | None = None
        self._codec: Codec | None = None
        self._schema: dict[str, Any] | None = None
        for attribute in ("__module__", "__doc__", "__qualname__", "__name__"):
            if hasattr(fn, attribute):
                setattr(self, attribute, getattr(fn, attribute))
        self.__wrapped__ = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """The function itself, as it is written: for a unit test, or as a part of another workflow."""
        return self.fn(*args, **kwargs)

    @property
    def cron(self) -> CronTrigger | None:
        """The first `cron` among the triggers."""
        return next((trigger for trigger in self.triggers if isinstance(trigger, CronTrigger)), None)

    # -- input

    @property
    def binder(self) -> Binder:
        if self._binder is None:
            self._binder = Binder(self._declaration, self.name)
        return self._binder

    def bind(self, input: bytes, *, strict: bool, envelope: bytes | None = None) -> dict[str, Any]:
        """Keyword arguments out of an input object. Raises InputError that names each field.

        `strict`: an unknown field is an error, else it is ignored. `envelope`: JSON of the record that started the run,
        for a parameter named `event`."""
        return self.binder.bind(input, strict=strict, envelope=envelope)

    def encode_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The input object of a call, positional arguments by their parameter's name. Raises InputError."""
        try:
            bound = self._declaration.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{error}; it takes {self._declaration.signature}", self.binder.target) from None
        for parameter in self._declaration.parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                bound.update(bound.pop(parameter.name, {}))
        try:
            payload = encode_plain(bound)
        except EncodeError as error:
            raise InputError(str(error), self.binder.target) from None
        return check_input(self, payload, strict=True)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the input object."""
        if self._schema is None:
            self._schema = self.binder.schema()
        return self._schema

    # -- output

    @property
    def codec(self) -> Codec:
        """Of the return annotation. Raises DefinitionError for one that cannot be kept."""
        if self._codec is None:
            try:
                self._codec = self._declaration.codec("return")
            except DefinitionError as error:
                raise DefinitionError(f"{self.place}: output of workflow {self.name!r}: {error}") from None
        return self._codec

    def encode_output(self, value: Any) -> bytes:
        """JSON of what the workflow returned. Raises EncodeError."""
        try:
            return self.codec.encode(value)
        except EncodeError as error:
            raise EncodeError(f"the output of workflow {self.name!r} cannot be kept: {error}") from None

    def decode_output(self, data: bytes) -> R:
        """What a parent gets."""
        return cast("R", self.codec.decode(data))

    # -- definition

    def options(
        self,
        *,
        id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        detached: bool | None = None,
    ) -> Workflow[R]:
        """The same workflow to be started as a child with this run ID, session or user; `detached`: it goes on when its
        parent is cancelled. What is not given stays.

        A child with an ID has a session of its own, unless it is given one: then its run ID is `session key.id`, as
        `handle.run_id` says."""
        for what, given in (("id", id), ("session_id", session_id), ("user_id", user_id)):
            if given is not None and (not isinstance(given, str) or not given):
                raise ValueError(f"{what} must be text, not {given!r}")
            if given is not None:
                check_text(given, what)
        if id is not None and not RUN_ID.fullmatch(id):
            raise ValueError(f"id {id!r}: a letter or digit first, then letters, digits, '.', '_' and '-'; at most 200")
        if detached is not None and not isinstance(detached, bool):
            raise TypeError(f"detached must be True or False, not {detached!r}")
        old = self.child
        other: Workflow[R] = Workflow(
            self.fn, self.name, self._declaration, self.triggers, self.timeout_ms, self.retries
        )
        other._binder, other._codec = self._binder, self._codec
        other.child = ChildOptions(
            old.id if id is None else id,
            old.session_id if session_id is None else session_id,
            old.user_id if user_id is None else user_id,
            old.detached if detached is None else detached,
        )
        return other

    def prepare(self) -> None:
        """Resolve all annotations. Raises DefinitionError; called when a module has been loaded, so that it is
        not a run that finds out."""
        self.binder.prepare()
        assert self.codec is not None

    @property
    def place(self) -> str:
        """file:line of its definition."""
        return self._declaration.place

    def __repr__(self) -> str:
        return f"<workflow {self.name!r} at {self.place}>"


# ------------------------------------------------------------------ decorating


class _Decorator(Protocol):
    def __call__(self, fn: Callable[..., Coroutine[Any, Any, C]], /) -> Workflow[C]: ...


@overload
def workflow(fn: Callable[..., Coroutine[Any, Any, C]], /) -> Workflow[C]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    triggers: Iterable[TriggerSpec] | None = None,
    cron: str | CronTrigger | None = None,
    timeout: float | timedelta | None = None,
    retries: int = 0,
) -> _Decorator: ...


def workflow(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    triggers: Iterable[TriggerSpec] | None = None,
    cron: str | CronTrigger | None = None,
    timeout: float | timedelta | None = None,
    retries: int = 0,
) -> Any:
    """Define a workflow and register it under its name.

    `triggers`: what starts it by itself (`agnt5.types`). `cron`: a schedule, short for a trigger. `timeout`: how long a
    run may take, in seconds or as a timedelta. `retries`: how often a failed run goes on again from what failed.
    Raises DefinitionError, ValueError or TypeError that say where, and what to write instead."""
    if isinstance(fn, str):
        raise DefinitionError(f"@workflow({fn!r}) is not a name; write @workflow(name={fn!r})")
    found = _triggers(triggers, cron)
    timeout_ms = _timeout_ms(timeout)
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries of a workflow must be a whole number, not {retries!r}")
    if retries < 0:
        raise ValueError(f"retries of a workflow must be 0 or more, not {retries}")

    def define(target: Any) -> Workflow[Any]:
        return _define(target, name, found, timeout_ms, retries)

    return define if fn is None else _define(fn, name, found, timeout_ms, retries)


def _define(
    fn: Any, name: str | None, triggers: tuple[TriggerSpec, ...], timeout_ms: int | None, retries: int
) -> Workflow[Any]:
    if isinstance(fn, (Workflow, Function)):
        raise DefinitionError(f"{fn.place}: {fn.name} is decorated twice; it is either a workflow or a function")
    if not callable(fn) or isinstance(fn, type):
        raise DefinitionError(f"@workflow decorates an async function, not {fn!r}")
    where = place(fn)
    named = registry.check_name("workflow", name if name is not None else getattr(fn, "__name__", None), where)
    if named in RESERVED:
        raise DefinitionError(f"{where}: {named!r} is a path of the HTTP interface; write @workflow(name=...)")
    if inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"{where}: workflow {named} yields; return its result instead")
    if not inspect.iscoroutinefunction(fn):
        raise DefinitionError(f"{where}: workflow {named} is not async; write: async def {fn.__name__}(ctx, ...)")
    declaration = Declaration(fn, enclosing_names(fn, depth=3))
    if not declaration.has_ctx:
        raise DefinitionError(
            f"{where}: the first parameter of workflow {named} must be ctx; write: "
            f"async def {fn.__name__}(ctx: WorkflowContext, ...)"
        )
    for parameter in declaration.parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise DefinitionError(
                f"{where}: workflow {named} takes *{parameter.name}, but input is bound by name; write a parameter for "
                f"each field, or one list: {parameter.name}: list[...]"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DefinitionError(f"{where}: workflow {named}: input is bound by name; remove the '/'")
        if parameter.name == "ctx":
            raise DefinitionError(f"{where}: workflow {named}: ctx must be the first parameter")
    made: Workflow[Any] = Workflow(fn, named, declaration, triggers, timeout_ms, retries)
    registry.add_workflow(made, sys._getframe(2).f_code)
    return made


def _triggers(given: Any, cron: str | CronTrigger | None) -> tuple[TriggerSpec, ...]:
    kinds = (EventTrigger, WebhookTrigger, CronTrigger, EveryTrigger)
    if isinstance(given, (str, *kinds)) or (given is not None and not isinstance(given, Iterable)):
        raise TypeError(f"triggers must be a list, such as triggers=[event('orders')], not {given!r}")
    found: list[TriggerSpec] = []
    for trigger in given or ():
        if not isinstance(trigger, kinds):
            raise TypeError(
                f"{trigger!r} is no trigger; write event(...), webhook(...), cron(...) or every(...) of agnt5.types"
            )
        found.append(trigger)
    if cron is not None:
        found.append(cron if isinstance(cron, CronTrigger) else CronTrigger(cron))
    return tuple(found)


def _timeout_ms(timeout: float | timedelta | None) -> int | None:
    if timeout is None:
        return None
    seconds: Any = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout must be seconds (a number) or a timedelta, not {timeout!r}")
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"timeout must be greater than 0 seconds, not {timeout!r}")
    if seconds * 1000 > LONGEST_MS:
        raise ValueError(f"timeout must be at most a thousand years, not {timeout!r}; leave it out for no limit")
    return max(1, round(seconds * 1000))
