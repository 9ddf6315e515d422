"""Every form of `ctx.step` as one entry."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from agnt5 import registry
from agnt5.codec import check_text, decode_plain, encode_plain
from agnt5.errors import EncodeError
from agnt5.execute import bounded
from agnt5.function import Function, plain_function
from agnt5.functioncontext import FunctionContext
from agnt5.replay.entries import Entry, Site, UsedUp
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import StepAsk, make_step_ask

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation


def step_of(
    activation: Activation, path: str | None, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Site
) -> Entry[Any]:
    """The entry for `ctx.step(given, *args, **kwargs)`; its path is the branch's next unless one is given.

    Raises TypeError or LookupError that says what to write instead."""
    if type(given) is Function:
        return _function(activation, path, given.name, given, args, kwargs, site)
    if isinstance(given, str):
        return _named(activation, path, given, args, kwargs, site)
    if (called := _called(activation, given, args, kwargs)) is not None:
        return called
    if inspect.isawaitable(given):
        name = getattr(given, "__name__", type(given).__name__)
        _no_arguments(name, args, kwargs)
        return _local(activation, path, name, _awaitable(name, given), site)
    if callable(given) and not isinstance(given, type) and not hasattr(given, "encode_output"):
        plain = plain_function(given)
        plain.check_call(args, kwargs)
        return _local(activation, path, _plain_name(plain), LocalCall(plain, args, kwargs), site)
    if hasattr(given, "encode_output"):
        raise TypeError(f"{given.name!r} is a workflow: write ctx.call({given.name}, ...) for a child run")
    raise TypeError(
        f"ctx.step takes a function, a name and a function, a registered function's name, or a coroutine; not {given!r}"
    )


def _named(
    activation: Activation, path: str | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], site: Site
) -> Entry[Any]:
    if not name:
        raise ValueError("a step's name must not be empty")
    check_text(name, "a step's name")
    first = args[0] if args else None
    if isinstance(first, Function):
        return _function(activation, path, name, first, args[1:], kwargs, site)
    if (called := _called(activation, first, args[1:], kwargs, name)) is not None:
        return called
    if inspect.isawaitable(first):
        _no_arguments(name, args[1:], kwargs)
        return _local(activation, path, name, _awaitable(name, first), site)
    if callable(first):
        plain = plain_function(first)
        plain.check_call(args[1:], kwargs)
        return _local(activation, path, name, LocalCall(plain, args[1:], kwargs), site)
    return _function(activation, path, name, registry.function(name), args, kwargs, site)


def _function(
    activation: Activation,
    path: str | None,
    name: str,
    function: Function[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    site: Site,
) -> Entry[Any]:
    registered = registry.find_function(function.name)
    if registered is not function and (registered is None or registered.fn is not function.fn):
        # Defined inside another function, say: a processor that has only the name could not find it.
        function.check_call(args, kwargs)
        return _local(activation, path, name, LocalCall(function, args, kwargs), site, function.policy.to_json())
    data = activation.checked(function.encode_input(args, kwargs), f"the input of step {name!r}")
    ask = make_step_ask(path or activation.branch().take(), name, function.name, data, function.ask_options)
    return Entry(activation, ask, site, function.decode_result)


def _local(
    activation: Activation,
    path: str | None,
    name: str,
    work: LocalCall | LocalAwaitable,
    site: Site,
    options: bytes | None = None,
) -> Entry[Any]:
    ask = StepAsk(path or activation.branch().take(), name, None, b"", options)
    return Entry(activation, ask, site, work.decode, work)


def _called(
    activation: Activation, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None
) -> Entry[Any] | None:
    """A function called without ctx and not awaited yet is a step already; here it may get another name."""
    if id(given) not in activation.unasked or not isinstance(given, Entry) or not isinstance(given.ask, StepAsk):
        return None
    _no_arguments(name or given.ask.name, args, kwargs)
    if name is not None:
        given.ask = given.ask._replace(name=name)
    return given


def _plain_name(function: Function[Any]) -> str:
    return "lambda" if function.name == "<lambda>" else function.name


def _awaitable(name: str, given: Any) -> LocalAwaitable:
    if isinstance(given, Pending):
        raise TypeError(f"step {name!r} was given an operation of ctx, which is durable already: await it by itself")
    if asyncio.isfuture(given):
        raise TypeError(f"step {name!r} was given a task or future of the workflow: pass a coroutine or a function")
    return LocalAwaitable(name, given)


def _no_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args or kwargs:
        raise TypeError(f"step {name!r} was given a call that is complete, and arguments: pass them in the call")


class LocalCall:
    """A call that only this activation can make: an undecorated function, a closure. Every attempt calls it again."""

    __slots__ = ("args", "decode", "function", "kwargs")

    def __init__(self, function: Function[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.decode: Callable[[bytes], Any] = function.decode_result

    async def run(self, ctx: FunctionContext | None = None) -> bytes:
        function = self.function
        if ctx is None:
            ctx = FunctionContext(name=function.name)
        encode = function.codec.encode  # before anything is done, as in `execute`
        call = function.invoke(ctx, self.args, self.kwargs)
        value = await bounded(call, function.policy.timeout_ms, function.name, ctx)
        try:
            return encode(value)
        except EncodeError as error:
            raise EncodeError(f"the result of step {function.name!r} cannot be kept: {error}") from None

    def usable(self) -> bool:
        return True

    def discard(self) -> None:
        pass


class LocalAwaitable:
    """A coroutine given to `ctx.step`: it can be awaited once."""

    __slots__ = ("awaitable", "decode", "name")

    def __init__(self, name: str, awaitable: Awaitable[Any]) -> None:
        self.name = name
        self.awaitable: Awaitable[Any] | None = awaitable
        self.decode: Callable[[bytes], Any] = decode_plain

    async def run(self, ctx: FunctionContext | None = None) -> bytes:
        awaitable, self.awaitable = self.awaitable, None
        if awaitable is None:
            raise UsedUp(f"the coroutine of step {self.name!r} has been run: rebuild the run for a fresh one")
        value = await awaitable
        try:
            return encode_plain(value)
        except EncodeError as error:
            raise EncodeError(f"the result of step {self.name!r} cannot be kept: {error}") from None

    def usable(self) -> bool:
        return self.awaitable is not None

    def discard(self) -> None:
        """Close it unless it was run, so that Python does not warn of it."""
        awaitable, self.awaitable = self.awaitable, None
        close = getattr(awaitable, "close", None)
        if close is not None:
            close()
