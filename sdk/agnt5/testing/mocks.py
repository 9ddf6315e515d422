"""What stands in for functions in a test."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from agnt5.function import Function, plain_function
from agnt5.functioncontext import FunctionContext


class Mocks:
    """By function, or by the name of a function or step: a value to return, an exception to raise, or a callable that
    gets the function's arguments (its `ctx` too, when its own first parameter is `ctx`)."""

    def __init__(self, given: Mapping[Any, Any] | None) -> None:
        self._by_name: dict[str, Any] = {}
        for key, mock in (given or {}).items():
            self._by_name[_name(key)] = mock

    def has(self, *names: str | None) -> bool:
        return any(name in self._by_name for name in names)

    async def call(
        self, names: tuple[str | None, ...], ctx: FunctionContext, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The mock's answer under the first of the names that has one."""
        mock = next(self._by_name[name] for name in names if name is not None and name in self._by_name)
        if isinstance(mock, BaseException) or (isinstance(mock, type) and issubclass(mock, BaseException)):
            raise mock
        if not callable(mock) or isinstance(mock, type):
            return mock
        if isinstance(mock, Function):
            return await mock.invoke(ctx, args, kwargs)
        if inspect.isfunction(mock) and plain_function(mock).takes_ctx:
            args = (ctx, *args)
        result = mock(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key
    name = getattr(key, "name", None) or getattr(key, "__name__", None)
    if not callable(key) or not isinstance(name, str):
        raise TypeError(f"mocks are given by function or by name; {key!r} is neither")
    return name
