"""Watches the event loop from a thread: names what blocks it, and ends the process when it never lets go.

Code that loops without awaiting cannot be interrupted from inside, while heartbeats go on from Faust's thread: nobody
else would take the partitions. So the process ends, its supervisor starts it anew, and what was running is found by
the journal: the third time it runs alone, and then its run is parked (invariant 12).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from types import FrameType

import structlog

from agnt5.replay.activation import Activation

log = structlog.stdlib.get_logger(__name__)

#: Seconds without a turn of the loop after which the culprit is named.
WARN_SECONDS = 1.0
#: Seconds after which the process ends.
END_SECONDS = 15.0
#: The exit code that says so (EX_TEMPFAIL of sysexits.h).
EXIT_CODE = 75

_BEAT = 0.25
_LINES = 8


class Watchdog:
    """Watches the running loop from its making until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._closed = threading.Event()
        self._beat()
        threading.Thread(target=self._watch, name="agnt5-watchdog", daemon=True).start()

    def _beat(self) -> None:
        self._last = time.monotonic()
        self._handle = self._loop.call_later(_BEAT, self._beat)

    def close(self) -> None:
        self._closed.set()
        self._handle.cancel()

    def _watch(self) -> None:
        named = False
        before = time.monotonic()
        while not self._closed.wait(_BEAT):
            now = time.monotonic()
            if now - before > 4 * _BEAT:
                self._last = now  # the whole process stood still (a stopped or starved machine): nobody's fault in it
            before = now
            blocked = now - self._last
            if blocked < WARN_SECONDS:
                named = False
            elif blocked > END_SECONDS:
                log.critical("loop.never_let_go", seconds=round(blocked, 1), **culprit(self._main))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(EXIT_CODE)
            elif not named:
                named = True
                log.warning("loop.blocked", seconds=round(blocked, 1), **culprit(self._main))


def culprit(thread: int) -> dict[str, str]:
    """The workflow and run whose code the thread is in, if it is in one, and where."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return {}
    found = {"stack": "".join(traceback.format_stack(frame)[-_LINES:])}
    activation = _activation_in(frame)
    if activation is not None:
        found |= {"workflow": activation.info.workflow, "run_id": activation.info.run_id}
    return found


def _activation_in(frame: FrameType | None) -> Activation | None:
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Activation):
            return owner
        frame = frame.f_back
    return None
