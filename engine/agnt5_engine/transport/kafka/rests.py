"""Partitions that are not fetched just now, because only we write to them.

An owner applies its own records when they are acknowledged; fetching them as well cost a fifth of its time. The
acknowledgements also tell whether others write to the partition: then their offsets leave a gap. A rest therefore lasts
while acknowledgements keep coming without one, and a moment longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faust.types import TP

_REST = 0.02  # seconds after an acknowledgement: by so much may come later what others write to a partition that rests
_RESTLESS = 1.0  # seconds for which a partition that others write to does not rest again


class Rests:
    """Which partitions rest; `rest` and `wake` are called as that changes."""

    def __init__(self, rest: Callable[[TP], None], wake: Callable[[TP], None]) -> None:
        self._rest = rest
        self._wake = wake
        self._until: dict[TP, float] = {}
        self._restless: dict[TP, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, source: TP) -> bool:
        return source in self._until

    def extend(self, source: TP) -> None:
        """An acknowledgement came, and nobody else has written."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if source not in self._until:
            if self._restless.get(source, 0.0) > now:
                return
            self._rest(source)
        self._until[source] = now + _REST
        if self._timer is None:
            self._timer = loop.call_later(_REST, self._look)

    def end(self, source: TP) -> None:
        """Somebody else has written."""
        self._restless[source] = asyncio.get_running_loop().time() + _RESTLESS
        if self._until.pop(source, None) is not None:
            self._wake(source)

    def forget(self, source: TP) -> None:
        self._until.pop(source, None)

    def clear(self) -> None:
        self._until.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for source in [source for source, until in self._until.items() if until <= now]:
            del self._until[source]
            self._wake(source)
        self._timer = loop.call_later(min(self._until.values()) - now, self._look) if self._until else None
