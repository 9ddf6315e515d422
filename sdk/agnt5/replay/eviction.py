"""Dropping suspended coroutines without running a line of them.

A coroutine that is dropped before its end is normally closed: Python raises GeneratorExit where it waits, and its
`except` and `finally` blocks run. For a run that only leaves memory, and will be rebuilt from its history, that would
be wrong: nothing has happened to it. CPython marks an object whose finalizer has run so that it never runs twice; here
that mark (bit 0 of the second word of the garbage collector's header, `_PyGC_FINALIZED`, the same from 3.9 to 3.13) is
set first, so that dropping the coroutine frees its frame and does nothing else.

The mark is tried out once when this module is imported. Where it does not work (another interpreter, a free-threaded
build), dropped coroutines are closed as usual; the run's operations, logger and listener are dead by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MethodType
from typing import Any

_SUSPENDABLE = (CoroutineType, GeneratorType, AsyncGeneratorType)
_CONTAINERS = (list, tuple, dict, deque)
_LARGEST_CONTAINER = 64
_MOST_VISITED = 2_000
"""Objects looked at for one dropped coroutine: enough for any sane stack of awaits and context managers; what holds
more is data."""


def drop(suspended: Iterable[Any]) -> None:
    """Forget these coroutines: when their last reference goes, no line of theirs runs and nothing is warned of.

    Also covers what they wait for, the generators in their variables, and the context managers they have entered."""
    for thing in suspended:
        if not MARKS:
            if getattr(thing, "cr_frame", None) is not None and not thing.cr_running and thing.cr_await is None:
                thing.close()  # not started: closing runs nothing, and keeps Python from warning
            continue
        seen = {id(thing)}
        visit = [thing]
        while visit and len(seen) < _MOST_VISITED:
            current = visit.pop()
            if isinstance(current, _SUSPENDABLE):
                _set_finalized(current)
            for referent in gc.get_referents(current):
                kind = type(referent)
                if kind not in _FOLLOWED or id(referent) in seen:
                    continue
                if kind not in _CONTAINERS or len(referent) <= _LARGEST_CONTAINER:
                    seen.add(id(referent))
                    visit.append(referent)


def _set_finalized(thing: object) -> None:
    ctypes.c_uint8.from_address(id(thing) - ctypes.sizeof(ctypes.c_void_p)).value |= 1


# ------------------------------------------------------------------ once, at import


async def _some_generator() -> AsyncGenerator[None, None]:
    yield


async def _some_coroutine() -> None:
    pass


def _followed_types() -> frozenset[type]:
    """What may stand between a frame and the generators it waits for or has entered."""
    coroutine = _some_coroutine()
    between: list[Any] = [
        _some_generator().asend(None),
        _some_generator().athrow(ValueError),
        anext(_some_generator(), None),
        coroutine.__await__(),
    ]
    types = {type(thing) for thing in between}
    for thing in between:
        thing.close()
    for name in ("_GeneratorContextManager", "_AsyncGeneratorContextManager", "ExitStack", "AsyncExitStack"):
        types.add(getattr(contextlib, name))
    return frozenset({*types, *_SUSPENDABLE, MethodType, *_CONTAINERS})


def _marking_works() -> bool:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 14) or not gil:
        return False
    acted: list[bool] = []

    def probe() -> Generator[None, None, None]:
        try:
            yield
        finally:
            acted.append(True)

    generator = probe()
    next(generator)
    if gc.is_finalized(generator):
        return False
    _set_finalized(generator)
    marked = gc.is_finalized(generator)
    del generator
    return marked and not acted


_FOLLOWED = _followed_types()
MARKS = _marking_works()
"""Whether dropped coroutines run nothing at all (else they are closed, with their run dead)."""
