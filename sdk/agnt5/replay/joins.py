"""Waiting for several things at once: `ctx.parallel` and `ctx.gather`."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agnt5.function import Function
from agnt5.replay.entries import Operation, Site
from agnt5.replay.pending import Callback, Pending

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)


class Join(Operation[T_co]):
    """Started when it is made: its operations are asked for, its coroutines are tasks. The first failure cancels the
    rest, which are awaited, and is raised; with `return_exceptions` failures are results."""

    __slots__ = ("cancelling", "children", "failure", "label", "left", "names", "return_exceptions", "told")

    def __init__(
        self,
        activation: Activation,
        label: str,
        given: Sequence[Any],
        names: tuple[str, ...] | None,
        return_exceptions: bool,
        site: Site,
    ) -> None:
        _check(label, given, names)
        super().__init__(activation, site)
        self.label = label
        self.names = names
        self.return_exceptions = return_exceptions
        self.failure: BaseException | None = None
        self.cancelling = False
        self.told: Any = None
        self.left = 1  # so that children that end at once do not end it before all are started
        self.children: list[Any] = []
        branch = activation.branch()
        try:
            for thing in given:
                child: Any = branch.operation(thing)
                if child is None:
                    child = thing if asyncio.isfuture(thing) else activation.loop.create_task(_coroutine(thing))
                self.children.append(child)
        except BaseException:
            self._never_asked()
            self._cancel_children()
            raise
        for child in self.children:
            self.left += 1
            if isinstance(child, Pending) and child.watcher is None and not child.done():
                child.watcher = self
                child.begin()
            else:
                child.add_done_callback(self.settled)
        self._one_less()

    def described(self) -> str:
        return f"{self.label}(...)"

    # It may be over before it is awaited, so being awaited is noted apart from being begun.

    def __await__(self) -> Generator[Any, None, T_co]:
        self._never_asked()
        return super().__await__()

    def begin(self) -> None:
        self._never_asked()
        super().begin()

    def add_done_callback(self, callback: Callback, *, context: contextvars.Context | None = None) -> None:
        self._never_asked()
        super().add_done_callback(callback, context=context)

    def _begin(self) -> None:
        pass  # all is asked for already

    def settled(self, child: Any) -> None:
        if not self.return_exceptions and self.failure is None:
            if child.cancelled():
                self.failure = asyncio.CancelledError()
            else:
                self.failure = child.exception()
            if self.failure is not None:
                self._cancel_children()
        elif not child.cancelled():
            child.exception()  # seen: asyncio need not tell of it
        self._one_less()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel what is still running; it is over when that has ended."""
        if self.done():
            return False
        self.begin()
        self.cancelling = True
        self.told = msg
        self._cancel_children(msg)
        if self.left == 0 and not self.done():
            super().cancel(msg)
        return True

    def _cancel_children(self, msg: Any | None = None) -> None:
        for child in self.children:
            if not child.done():
                child.cancel(msg)

    def _one_less(self) -> None:
        self.left -= 1
        if self.left:
            return
        if self.cancelling:
            super().cancel(self.told)
        elif isinstance(self.failure, asyncio.CancelledError):
            super().cancel()
        elif self.failure is not None:
            self.fail(self.failure)
        else:
            results = [_result(child) for child in self.children]
            self.finish(results if self.names is None else dict(zip(self.names, results, strict=True)))


def _result(child: Any) -> Any:
    try:
        return child.result()
    except BaseException as error:
        return error


async def _await(thing: Any) -> Any:
    return await thing


def _coroutine(thing: Any) -> Any:
    return thing if asyncio.iscoroutine(thing) else _await(thing)


def _check(label: str, given: Sequence[Any], names: tuple[str, ...] | None) -> None:
    """Everything must be awaitable, before anything is started."""
    for index, thing in enumerate(given):
        if hasattr(type(thing), "__await__") or asyncio.iscoroutine(thing):
            continue
        for other in given:
            if asyncio.iscoroutine(other):
                other.close()
        where = f"argument {index + 1}" if names is None else f"{names[index]}="
        hint = "call it" if isinstance(thing, Function) or callable(thing) else "pass a ctx operation or a coroutine"
        raise TypeError(f"{label} takes awaitables; {where} is {thing!r}: {hint}")
