"""Going through a history again: exactly (`Rebuild`), or keeping what still holds (`Resume`)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agnt5.replay import mismatch
from agnt5.replay.entries import TIMER
from agnt5.replay.protocol import Ask, Cancelled, EntryKey, PastEvent, Resolved, Turn, ask_digest, ask_key

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation


class Past:
    """What one event's activation read and was told, for when it is replayed."""

    __slots__ = ("exact", "marks", "reads")

    def __init__(self, past: PastEvent, exact: bool) -> None:
        self.reads = dict(past.reads)
        self.marks = dict(past.marks)
        self.exact = exact
        """A read that is not recorded is a mismatch; else it is answered afresh."""


class Rebuild:
    """The events one at a time, each at its time, the loop run to idle between them: what live was."""

    def __init__(self, activation: Activation, history: Sequence[PastEvent], pending: Mapping[str, EntryKey]) -> None:
        self.activation = activation
        self.history = history
        self.pending = pending
        self.index = 0

    def advance(self, turn: Turn | None = None) -> Turn:
        """Go on, after `turn` if in-place calls interrupted it, until the end or the next in-place call."""
        activation = self.activation
        activation.replaying = True
        while True:
            if turn is not None:
                if activation.calls and not self._interrupted():
                    return Turn(calls=turn.calls)
                self._close()
                if self.index == len(self.history):
                    return self._end(turn)
            turn = self._open(self.history[self.index])

    def _interrupted(self) -> bool:
        """Whether the run was asked to stop at this point, in the middle of its in-place calls."""
        if self.index + 1 == len(self.history):
            return False
        following = self.history[self.index + 1]
        return type(following.event) is Cancelled and following.digest == 1 + self.activation.calls_returned

    def _open(self, past: PastEvent) -> Turn:
        activation, event = self.activation, past.event
        path = "" if event is None or type(event) is Cancelled else event.path  # type: ignore[union-attr]
        if activation.ended:
            raise mismatch.ended_early(activation, past, path)
        activation.begin_event(past.time)
        activation.past = Past(past, exact=True)
        if event is None:
            activation.start_code()
        else:
            if path:
                entry = activation.open.get(path)
                if entry is None or ask_key(entry.ask) != (path, past.kind, past.name):
                    raise activation.does_not_fit(mismatch.unexpected_event(activation, path, past))
            activation.apply(event, past)
        return activation.end_event()

    def _close(self) -> None:
        activation = self.activation
        past, activation.past = activation.past, None
        if past is not None and past.reads:
            raise activation.does_not_fit(mismatch.not_read_again(activation, past.reads))
        self.index += 1
        activation.replayed = self.index

    def _end(self, turn: Turn) -> Turn:
        activation = self.activation
        if self.pending.keys() != activation.open.keys() or any(
            ask_key(activation.open[path].ask) != key for path, key in self.pending.items()
        ):
            raise activation.does_not_fit(mismatch.different_pending(activation, self.pending))
        activation.replay_is_over()
        return Turn(outcome=turn.outcome)


class Resume:
    """A failed run's next attempt: results whose ask is the same again are given in their old order, as soon as they
    are asked for; what failed, timed out or was cancelled, and timers of time limits, start afresh.

    As long as nothing has been left out, reads and marks are also the old ones, so the code takes its old way up to
    where it failed."""

    def __init__(self, activation: Activation, time: int, history: Sequence[PastEvent]) -> None:
        self.activation = activation
        self.time = time
        self.history = history
        self.results = {
            past.event.path: index
            for index, past in enumerate(history)
            if type(past.event) is Resolved and not (past.kind == "sleep" and past.name == TIMER)
        }
        self.usable: list[int] = []  # heap of positions in the history
        self.position = 0
        self.exact = True
        self.asked: dict[str, Ask] = {}
        self.event = PastEvent(time, None, "", "", 0, (), ())
        self.turn = Turn()

    def advance(self, turn: Turn | None = None) -> Turn:
        """Go on, after `turn` if in-place calls interrupted it, until nothing kept is asked for, or the next call."""
        activation = self.activation
        activation.replaying = True
        if turn is None:
            turn = self._open(0)
        while True:
            self._take(turn)
            if activation.calls:
                return Turn(calls=turn.calls)
            self._close()
            following = self._following()
            if following is None or activation.ended:
                activation.replay_is_over()
                return Turn(asks=list(self.asked.values()), outcome=turn.outcome)
            turn = self._open(following)

    def _open(self, index: int) -> Turn:
        activation = self.activation
        past = self.history[index] if index < len(self.history) else PastEvent(self.time, None, "", "", 0, (), ())
        self.exact = self.exact and index == self.position
        self.position += 1
        self.event = past._replace(time=self.time)
        self.turn = Turn()
        activation.begin_event(self.time)
        activation.past = Past(past, exact=False) if self.exact else None
        if past.event is None:
            activation.start_code()
        else:
            assert isinstance(past.event, Resolved)
            self.asked.pop(past.event.path)
            activation.apply(past.event, past)
        return activation.end_event()

    def _take(self, turn: Turn) -> None:
        self.turn.reads += turn.reads
        self.turn.marks += turn.marks
        for path in turn.withdrawn:
            self.asked.pop(path, None)
        for ask in turn.asks:
            self.asked[ask.path] = ask
            index = self.results.get(ask.path)
            if index is not None:
                past = self.history[index]
                if ask_key(ask) == (ask.path, past.kind, past.name) and ask_digest(ask) == past.digest:
                    heapq.heappush(self.usable, index)

    def _close(self) -> None:
        self.activation.past = None
        self.activation.kept.append(self.event._replace(reads=tuple(self.turn.reads), marks=tuple(self.turn.marks)))

    def _following(self) -> int | None:
        while self.usable:
            index = heapq.heappop(self.usable)
            event = self.history[index].event
            if type(event) is Resolved and event.path in self.activation.open:
                return index
        return None
