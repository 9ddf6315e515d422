"""`@function`: a unit of work that a workflow calls as a step."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, Generic, Protocol, cast, overload
from weakref import WeakKeyDictionary

from pydantic_core import from_json, to_json
from typing_extensions import TypeVar

from agnt5 import registry
from agnt5.codec import PLAIN, Codec, encode_plain, explain
from agnt5.errors import DefinitionError, InputError
from agnt5.functioncontext import FunctionContext
from agnt5.policies import BackoffPolicy, RetryPolicy, StepOptions
from agnt5.signature import EMPTY, Declaration, enclosing_names, place
from agnt5.threads import run_in_thread

R = TypeVar("R", default=Any)


class RunningWorkflow(Protocol):
    """What a workflow's context offers to a function that is called in it."""

    def _called(self, function: Function[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called without `ctx`: a checkpointed step, once it is awaited or handed on."""
        ...

    def _in_place(self, function: Function[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called with `ctx`: run now, not checkpointed."""
        ...


current_activation: ContextVar[RunningWorkflow | None] = ContextVar("current_activation", default=None)
"""The context of the workflow whose code is running now; set by the replay core, None everywhere else."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Function(Generic[R]):
    """A function with its name, its options and the codecs of its parameters and its result.

    `policy` holds its StepOptions; `options(...)` gives the same function with other ones. `ask_options` is None, or
    the JSON of options that are not those it is registered with."""

    __name__: str
    __qualname__: str
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_codec",
        "_coercers",
        "_declaration",
        "_least",
        "_most",
        "ask_options",
        "fn",
        "is_async",
        "name",
        "policy",
        "takes_ctx",
    )

    def __init__(self, fn: Callable[..., Any], name: str, policy: StepOptions, declaration: Declaration) -> None:
        self.fn = fn
        self.name = name
        self.policy = policy
        self.takes_ctx = declaration.has_ctx
        self.is_async = is_async(fn)
        self.ask_options: bytes | None = None
        self._declaration = declaration
        self._codec: Codec | None = None
        self._coercers: _Coercers | None = None
        positional = [p for p in declaration.parameters if p.kind in _POSITIONAL]
        others = [p for p in declaration.parameters if p.kind not in _POSITIONAL]
        self._least = sum(p.default is EMPTY for p in positional)
        self._most = len(positional)
        if any(p.kind is p.VAR_POSITIONAL for p in others):
            self._most = 1 << 30
        if any(p.kind is p.KEYWORD_ONLY and p.default is EMPTY for p in others):
            self._most = -1  # no call without keywords fits
        for attribute in ("__module__", "__doc__", "__qualname__", "__name__"):
            if hasattr(fn, attribute):
                setattr(self, attribute, getattr(fn, attribute))
        self.__wrapped__ = fn

    # -- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """With a workflow's or a function's `ctx` first: run now, in place, not checkpointed. Without: a checkpointed
        step inside a workflow, and just the function anywhere else (a unit test).

        Inside a workflow the result is an operation of its loop; for all that is done with it, it is a coroutine."""
        if args:
            first = args[0]
            if isinstance(first, FunctionContext):
                return self.invoke(first, args[1:], kwargs)
            if hasattr(type(first), "_in_place"):
                self.check_call(args[1:], kwargs)
                return cast("Coroutine[Any, Any, R]", first._in_place(self, args[1:], kwargs))
        if "ctx" in kwargs and self.takes_ctx:
            return self(kwargs.pop("ctx"), *args, **kwargs)
        active = current_activation.get()
        if active is not None:
            return cast("Coroutine[Any, Any, R]", active._called(self, args, kwargs))
        if self.takes_ctx and self._first_is_ctx(args, kwargs):
            return self.invoke(args[0], args[1:], kwargs)
        self.check_call(args, kwargs)
        return self.invoke(FunctionContext(name=self.name), args, kwargs)

    async def invoke(self, ctx: Any, args: tuple[Any, ...] | list[Any], kwargs: Mapping[str, Any]) -> R:
        """Run the function itself: async on this loop, a plain `def` in a thread. `ctx` is passed if it takes one."""
        if self.takes_ctx:
            args = (ctx, *args)
        if self.is_async:
            return cast("R", await self.fn(*args, **kwargs))
        return cast("R", await run_in_thread(self.fn, args, kwargs, None, ctx))

    def _first_is_ctx(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Outside a workflow: is the first argument a stand-in for `ctx`? The one reading that fits decides; when
        both do, anything that cannot be an argument from JSON is a stand-in."""
        if not args:
            return False
        signature = self._declaration.signature
        try:
            signature.bind(*args[1:], **kwargs)
        except TypeError:
            return False
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return True
        if args[0] is None:
            return False
        try:
            to_json(args[0], bytes_mode="base64")
        except Exception:
            return True
        return False

    # -- input and result as bytes

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raises TypeError, naming the function, when it cannot be called like this."""
        if not kwargs and self._least <= len(args) <= self._most:
            return
        try:
            self._declaration.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"function {self.name!r}{self._declaration.signature} cannot be called like this: {error} "
                f"(defined at {self._declaration.place})"
            ) from None

    def encode_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """JSON {"args": [...], "kwargs": {...}}. Raises TypeError for a wrong call, EncodeError for a wrong value."""
        if kwargs or not self._least <= len(args) <= self._most:
            self.check_call(args, kwargs)
        return encode_plain({"args": [*args], "kwargs": kwargs})

    def decode_input(self, data: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, coerced by their annotations. Raises InputError naming the parameters."""
        call = from_json(data)
        args: list[Any] = call["args"]
        kwargs: dict[str, Any] = call["kwargs"]
        coercers = self._coercers
        if coercers is None:
            coercers = self._coercers = _Coercers(self._declaration)
        if coercers.active:
            coercers.apply(args, kwargs, self.name)
        return args, kwargs

    @property
    def codec(self) -> Codec:
        """Of the return annotation. Raises DefinitionError for one that cannot be kept."""
        if self._codec is None:
            try:
                self._codec = self._declaration.codec("return")
            except DefinitionError as error:
                raise DefinitionError(f"{self._declaration.place}: result of function {self.name!r}: {error}") from None
        return self._codec

    def encode_result(self, value: Any) -> bytes:
        """JSON of what the function returned. Raises EncodeError."""
        return (self._codec or self.codec).encode(value)

    def decode_result(self, data: bytes) -> R:
        """What the workflow gets, live and in replay."""
        value: R = (self._codec or self.codec).decode(data)
        return value

    # -- other options

    def options(
        self,
        *,
        retries: int | Mapping[str, Any] | RetryPolicy | None = None,
        backoff: str | Mapping[str, Any] | BackoffPolicy | None = None,
        timeout_ms: int | None = None,
        queue: str | None = None,
    ) -> Function[R]:
        """The same function with other options; what is not given stays."""
        return self.with_options(
            self.policy.changed(retries=retries, backoff=backoff, timeout_ms=timeout_ms, queue=queue)
        )

    def with_options(self, policy: StepOptions) -> Function[R]:
        """The same function under another policy."""
        other: Function[R] = Function(self.fn, self.name, policy, self._declaration)
        other.ask_options = policy.to_json()
        return other

    @property
    def place(self) -> str:
        """file:line of its definition."""
        return self._declaration.place

    def __repr__(self) -> str:
        return f"<function {self.name!r} at {self.place}>"


class _Coercers:
    """How each parameter's JSON value becomes what its annotation says; nothing for those that take JSON as it is."""

    __slots__ = ("active", "by_name", "every_keyword", "every_position", "names", "positions")

    def __init__(self, declaration: Declaration) -> None:
        self.positions: list[Codec | None] = []
        self.by_name: dict[str, Codec | None] = {}
        self.every_position: Codec | None = None
        self.every_keyword: Codec | None = None
        for parameter in declaration.parameters:
            try:
                codec = declaration.codec(parameter.name)
            except DefinitionError as error:
                if str(error).startswith(declaration.place):
                    raise
                raise DefinitionError(f"{declaration.place}: parameter {parameter.name!r}: {error}") from None
            found = None if codec is PLAIN else codec
            if parameter.kind in _POSITIONAL:
                self.positions.append(found)
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.every_position = found
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.every_keyword = found
            elif parameter.kind is not parameter.POSITIONAL_ONLY:
                self.by_name[parameter.name] = found
        self.active = any([*self.positions, *self.by_name.values(), self.every_position, self.every_keyword])
        self.names = [p.name for p in declaration.parameters if p.kind in _POSITIONAL]

    def apply(self, args: list[Any], kwargs: dict[str, Any], function: str) -> None:
        known = len(self.positions)
        where: int | str = 0
        try:
            for where, value in enumerate(args):
                codec = self.positions[where] if where < known else self.every_position
                if codec is not None:
                    args[where] = codec.coerce(value)
            for where, value in kwargs.items():
                codec = self.by_name.get(where, self.every_keyword)
                if codec is not None:
                    kwargs[where] = codec.coerce(value)
        except ValueError as error:
            name = where if isinstance(where, str) else self.names[where] if where < known else f"argument {where + 1}"
            raise InputError({name: explain(error)}, f"function {function!r}") from None


# ------------------------------------------------------------------ decorating


def is_async(fn: Any) -> bool:
    """Whether calling `fn` gives a coroutine."""
    inner = fn
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def plain_function(fn: Callable[..., Any]) -> Function[Any]:
    """An undecorated function as a step: named by itself, default options, not registered."""
    known = _plain_functions.get(fn) if inspect.isfunction(fn) else None
    if known is None:
        name = getattr(fn, "__name__", None) or type(fn).__name__
        known = Function(fn, name, StepOptions(), Declaration(fn))
        if inspect.isfunction(fn):
            _plain_functions[fn] = known
    return known


_plain_functions: WeakKeyDictionary[Any, Function[Any]] = WeakKeyDictionary()


@overload
def function(fn: Callable[..., Coroutine[Any, Any, R]], /) -> Function[R]: ...
@overload
def function(fn: Callable[..., R], /) -> Function[R]: ...
@overload
def function(
    *,
    name: str | None = None,
    retries: int | Mapping[str, Any] | RetryPolicy | None = None,
    backoff: str | Mapping[str, Any] | BackoffPolicy | None = None,
    timeout_ms: int | None = None,
    queue: str | None = None,
) -> _Decorator: ...


def function(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    retries: int | Mapping[str, Any] | RetryPolicy | None = None,
    backoff: str | Mapping[str, Any] | BackoffPolicy | None = None,
    timeout_ms: int | None = None,
    queue: str | None = None,
) -> Any:
    """Make a function callable as a step, and register it under its name.

    `retries`: attempts in all (3), a dict or a RetryPolicy. `backoff`: how the waits between grow ("exponential"), a
    dict or a BackoffPolicy. `timeout_ms`: how long one attempt may take. `queue`: run it in `agnt5 worker` pools of
    that queue. Raises ValueError or TypeError for a wrong option, DefinitionError for a function that cannot be one."""
    policy = StepOptions().changed(retries=retries, backoff=backoff, timeout_ms=timeout_ms, queue=queue)

    def define(target: Any) -> Function[Any]:
        return _define(target, name, policy)

    if fn is None:
        return define
    if isinstance(fn, str):
        raise DefinitionError(f"@function({fn!r}) is not a name; write @function(name={fn!r})")
    return _define(fn, name, policy)


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[..., Coroutine[Any, Any, R]], /) -> Function[R]: ...
    @overload
    def __call__(self, fn: Callable[..., R], /) -> Function[R]: ...


def _define(fn: Any, name: str | None, policy: StepOptions) -> Function[Any]:
    if isinstance(fn, Function):
        raise DefinitionError(f"{fn.place}: {fn.name} is decorated with @function twice; write it once")
    if not callable(fn) or isinstance(fn, type):
        raise DefinitionError(f"@function decorates a function, not {fn!r}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(
            f"{place(fn)}: function {fn.__name__} yields; a step has one result that is kept: return a list instead"
        )
    named = registry.check_name("function", name if name is not None else getattr(fn, "__name__", None), place(fn))
    declaration = Declaration(fn, enclosing_names(fn, depth=3))
    for parameter in declaration.parameters:
        if parameter.name == "ctx":
            raise DefinitionError(f"{place(fn)}: in function {named}, ctx must be the first parameter")
    made: Function[Any] = Function(fn, named, policy, declaration)
    registry.add_function(made, sys._getframe(2).f_code)
    return made
