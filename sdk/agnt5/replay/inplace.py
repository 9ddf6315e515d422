"""`await fn(ctx, ...)`: run now, on the real event loop, not recorded, run again at every rebuild."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from agnt5.function import Function
from agnt5.functioncontext import FunctionContext
from agnt5.replay.entries import Operation, Site

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)

DEFAULT_TIMEOUT_MS = 60_000


class InPlace(Operation[T_co]):
    """One call, bounded by its function's `timeout_ms`."""

    __slots__ = ("args", "ctx", "function", "kwargs", "token")

    def __init__(
        self,
        activation: Activation,
        function: Function[T_co],
        ctx: FunctionContext,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        site: Site | None,
    ) -> None:
        super().__init__(activation, site)
        self.function = function
        self.ctx = ctx
        self.args = args
        self.kwargs = kwargs
        self.token = -1

    def work(self) -> Awaitable[T_co]:
        """To be awaited on the real event loop."""
        return self.function.invoke(self.ctx, self.args, self.kwargs)

    def _ask(self) -> None:
        self.activation.call_in_place(self)

    def _withdraw(self) -> None:
        self.activation.drop_call(self.token)

    def described(self) -> str:
        return f"{self.function.name}(ctx, ...)"
