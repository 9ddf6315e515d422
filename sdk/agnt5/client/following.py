"""Following a run's events over connections that break, without I/O: what to ask for next, and when it is over."""

from __future__ import annotations

import time

from agnt5.client.calls import Call, Lost, Outage, Reply, problem_of, retry_after, run_path
from agnt5.client.errors import refusal
from agnt5.client.models import Event

ENDS = frozenset({"run.completed", "run.failed", "run.cancelled", "run.timeout"})
"""The events that end a run: after one of them a stream has nothing more to bring."""

_CLOSED = "streams of events are closed as soon as they are opened"

LASTING = 5.0
"""Seconds for which a stream without events has to last for somebody to be there: a run may be quiet for days."""


class Following:
    """One stream of events. The driver opens `call()`, hands over what comes, and after each connection either stops
    (`over`), or tells `found` whether the run has ended (`in_doubt`), or waits `pause` seconds and opens the next."""

    def __init__(self, first: Call | None, run_id: str | None, after: int, patience: float) -> None:
        self._first = first
        self.run_id = run_id
        self._last = after
        self._outage = Outage(patience)
        self._opened_at: float | None = None
        self.over = False
        self.in_doubt = False
        self.pause = 0.0
        self._run_has_ended = False

    def call(self) -> Call:
        """The next request: it starts the run as long as its ID is not known, then resumes after the last event."""
        self.in_doubt = False
        self.pause = 0.0
        self._opened_at = None
        headers = {"accept": "text/event-stream"}
        if self._last:
            headers["last-event-id"] = str(self._last)
        if self.run_id is None:
            assert self._first is not None
            return self._first._replace(headers=self._first.headers | headers)
        return Call("GET", f"{run_path(self.run_id)}/events", {"follow": "1"}, headers)

    def opened(self, reply: Reply) -> bool:
        """Whether events follow. Raises ApiError for a refusal that stays one."""
        if reply.status == 200:
            self._opened_at = time.monotonic()
            location = reply.headers.get("location")
            if self.run_id is None and location is not None:
                self.run_id = location.rpartition("/")[2]
            return True
        after = retry_after(reply)
        problem = problem_of(reply)
        if after is None:
            raise refusal(problem)
        self.pause = self._outage.next_pause(problem.detail, after).seconds
        return False

    def received(self, data: str) -> Event:
        event = Event.model_validate_json(data)
        self._outage.over()
        self.run_id = event.run_id
        self._last = max(self._last, event.seq)
        self.over = event.type in ENDS
        return event

    def ended(self) -> None:
        """The server closed the stream: the run has ended, or its owner is going away. Raises UnavailableError when
        patience is exhausted, as `found` does."""
        if self._run_has_ended:
            self.over = True  # it had ended before this stream was opened, so this was all
        self.in_doubt = not self.over and self.run_id is not None
        if self.run_id is None:
            self._broke(_CLOSED)

    def found(self, run_has_ended: bool) -> None:
        """What the run's status says. When it has ended, one more stream brings what happened meanwhile."""
        self._run_has_ended = run_has_ended
        if not run_has_ended:
            self._broke(_CLOSED)

    def lost(self, loss: Lost) -> None:
        """The connection broke. Raises UnavailableError when patience is exhausted."""
        self._broke(loss.reason)

    def _broke(self, reason: str) -> None:
        if self._opened_at is not None and time.monotonic() - self._opened_at > LASTING:
            self._outage.over()
        if not self.over:
            self.pause = self._outage.next_pause(reason).seconds
