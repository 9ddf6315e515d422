"""`await fn(ctx, ...)`: run now, on the real event loop, not recorded, run again at every rebuild."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from agnt5.replay.entries import Operation, Site

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)

DEFAULT_TIMEOUT_MS = 60_000


class InPlace(Operation[T_co]):
    """One call. `work` makes the awaitable that the driver awaits; `timeout_ms` bounds it."""

    __slots__ = ("name", "timeout_ms", "token", "work")

    def __init__(
        self,
        activation: Activation,
        name: str,
        work: Callable[[], Awaitable[T_co]],
        timeout_ms: int | None,
        site: Site | None,
    ) -> None:
        super().__init__(activation, site)
        self.name = name
        self.work = work
        self.timeout_ms = timeout_ms or DEFAULT_TIMEOUT_MS
        self.token = -1

    def _ask(self) -> None:
        self.activation.call_in_place(self)

    def _withdraw(self) -> None:
        self.activation.drop_call(self.token)

    def described(self) -> str:
        return f"{self.name}(ctx, ...)"
