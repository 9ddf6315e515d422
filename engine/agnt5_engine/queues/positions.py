"""How far a queue's partition has been worked off: everything before the first command that is still open."""

from __future__ import annotations

from collections import deque


class Positions:
    """Commands are added in the order of their offsets and finished in any. `start`: the offset read first."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._open: deque[int] = deque()
        self._finished: set[int] = set()

    def add(self, offset: int) -> None:
        """A command has been read."""
        self._open.append(offset)
        self._next = offset + 1

    def passed(self, next_offset: int) -> None:
        """Everything before `next_offset` has been read."""
        self._next = max(self._next, next_offset)

    def finish(self, offset: int) -> None:
        """The command at `offset` needs no more of this worker. Finishing it again does nothing."""
        if self._open and offset >= self._open[0]:
            self._finished.add(offset)
            while self._open and self._open[0] in self._finished:
                self._finished.discard(self._open.popleft())

    @property
    def done(self) -> int:
        """The offset to commit: everything before it is finished."""
        return self._open[0] if self._open else self._next

    @property
    def reached(self) -> int:
        """The last offset that is finished while one before it is open; -1 when there is none."""
        return max(self._finished, default=-1)

    @property
    def gap(self) -> int:
        """How many commands behind the first open one would be executed again if this worker died now."""
        return len(self._finished)
