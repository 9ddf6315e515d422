"""Reads and writes of the session's state inside one run: who may go, and who waits.

From the issue of a write until it is applied, every other read and write of the run waits, in the order they came. A
branch that has read keeps the others out until the run has nothing left to do, so `get` then `set` in it is atomic
whatever it does between, durable operations excepted: while these are waited for, others may go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from agnt5.replay.entries import BRANCH, Branch, Chain, Entry, Operation, Site
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import WriteAsk

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)

Look = Callable[[Mapping[str, bytes]], bytes]
"""What a read takes from the session's state: JSON, or b"" for a key that is not there."""


class SessionGate:
    """One run's order of session operations."""

    __slots__ = ("holder", "queue", "writing")

    def __init__(self) -> None:
        self.queue: deque[SessionRead[Any] | SessionWrite] = deque()
        self.writing: SessionWrite | None = None
        self.holder: Branch | None = None  # has read, and may be about to write

    def enter(self, operation: SessionRead[Any] | SessionWrite) -> None:
        """Let the operation go, or queue it."""
        if self.writing is not None or (self.holder is not None and self.holder is not operation.branch):
            self.queue.append(operation)
        else:
            operation.go()

    def next(self) -> bool:
        """The run has nothing left to do: let the next one in. False when nobody waits or a write is in flight."""
        self.holder = None
        if self.writing is not None:
            return False
        while self.queue:
            operation = self.queue.popleft()
            if not operation.done():
                operation.go()
                return True
        return False


class SessionRead(Operation[T_co]):
    """Answered inside the activation, and remembered with the event that caused it."""

    __slots__ = ("decode", "label", "look", "path")

    def __init__(
        self,
        activation: Activation,
        path: str,
        look: Look,
        decode: Callable[[bytes], Any],
        label: str,
        site: Site | None,
    ) -> None:
        super().__init__(activation, site)
        self.path = path
        self.look = look
        self.decode = decode
        self.label = label

    def _ask(self) -> None:
        self.branch = BRANCH.get()
        self.activation.gate.enter(self)

    def go(self) -> None:
        self.activation.gate.holder = self.branch
        data = self.activation.session_read(self.path, self.look)
        if data is None:
            return  # does not fit the history: the activation ends here
        try:
            value = self.decode(data)
        except Exception as error:
            self.fail(error)
            return
        self.finish(value)

    def described(self) -> str:
        return self.label


class SessionWrite(Entry[None]):
    """Asked when it is this one's turn; the next goes when it has been applied."""

    __slots__ = ("label",)

    def __init__(self, activation: Activation, path: str, changes: bytes, label: str, site: Site | None) -> None:
        super().__init__(activation, WriteAsk(path, changes), site, None)
        self.label = label

    def _ask(self) -> None:
        self.activation.gate.enter(self)

    def described(self) -> str:
        return self.label

    def go(self) -> None:
        self.activation.gate.writing = self
        self.activation.ask(self)

    def _settle(self, state: int, value: Any) -> None:
        gate = self.activation.gate
        if gate.writing is self:
            gate.writing = None
        super()._settle(state, value)

    def _withdraw(self) -> None:
        # Only in the activation that asked: until the write is applied nothing else is delivered.
        if self.activation.gate.writing is self:
            self.activation.withdraw(self.ask.path)


class SessionUpdate(Chain[Any]):
    """A read and the write that follows from it, with nothing between."""

    __slots__ = ("change", "look", "value")

    def __init__(
        self,
        activation: Activation,
        path: str,
        label: str,
        site: Site | None,
        look: Look,
        change: Callable[[bytes], tuple[Any, bytes]],
    ) -> None:
        super().__init__(activation, path, label, site)
        self.look = look
        self.change = change
        self.value: Any = None

    def first(self) -> None:
        self.start(SessionRead(self.activation, self.next_path(), self.look, bytes, self.label, self.site))

    def then(self, entry: Pending[Any]) -> None:
        if self.steps > 1:
            self.finish(self.value)
            return
        self.value, changes = self.change(entry.result())
        write = SessionWrite(self.activation, self.next_path(), changes, self.label, self.site)
        assert isinstance(entry, SessionRead)
        write.branch = entry.branch
        self.start(write)
