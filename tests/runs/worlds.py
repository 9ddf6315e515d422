"""The worlds that the model tests go through, and what came of them, kept by guarantee."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from agnt5 import registry
from tests.runs import programs
from tests.runs.checks import Watch, judge
from tests.runs.simulator import Weather, World

_CALLS = programs.CALLS * 2 + ("parallel", "signal", "step", "closure", "emit")

WORLDS = {
    "everything": Weather(),
    "sessions": Weather(kinds=programs.SESSION * 3 + programs.SIMPLE + programs.JOINS, sessions=1, runs=6),
    "calls": Weather(kinds=programs.SESSION + _CALLS + ("child", "user"), cancels=0, forces=0),
    "interrupts": Weather(kinds=programs.SESSION + _CALLS + ("catch", "finally"), cancels=0.04, forces=0.01),
    "commands": Weather(
        kinds=("step", "signal", "signal", "ask", "ask", "finally", "catch", "child"),
        cancels=0.05, forces=0.01, retries=0.05, signals=0.3, answers=0.3, repeats=0.1,
    ),
    "newer": Weather(
        kinds=programs.NEWER * 2 + programs.SESSION + ("step", "signal", "ask", "user", "parallel", "child"),
        retries=0.03,
    ),
    "retried calls": Weather(
        kinds=programs.NEWER + programs.SESSION + _CALLS, workflows=("model.stubborn", "model.plain"), retries=0.05,
        cancels=0.02, crash=0.06,
    ),
    "storms": Weather(crash=0.15, evict=0.4, checkpoint=0.3, lost=0.3, compact=0.1),
    "foreseen": Weather(kinds=programs.SESSION + _CALLS + ("sleep", "child"), crash=0.08, evict=0.4, foresight=0.6),
    "local steps": Weather(
        local=True, kinds=programs.SESSION + _CALLS + ("catch", "finally"), cancels=0.04, forces=0.01, foresight=0.2
    ),
    "other code": Weather(
        unfit=True, workflows=("model.plain", "model.guilty", "model.guilty"), cancels=0, forces=0
    ),
}  # fmt: skip
#: Worlds of each kind that every run of the tests goes through.
ENOUGH = 25


class Fault(NamedTuple):
    """Something that must not be."""

    world: str
    seed: int
    guarantee: str
    told: str


def live(name: str, seed: int, weather: Weather | None = None) -> tuple[World, list[Fault]]:
    """Go through one world."""
    weather = weather or WORLDS[name]
    watch = Watch(agree=not weather.unfit)
    known = registry.snapshot()
    if weather.local:
        registry.clear()
    world = World(seed, weather, watch)
    try:
        world.run()
        bad = judge(world, watch)
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        bad = [f"breaks: {type(e).__name__}: {e} ({where.filename}:{where.lineno})"]
    finally:
        world.close()
        registry.restore(known)
    return world, [Fault(name, seed, told.partition(":")[0], told) for told in bad]


def seeds() -> Iterator[tuple[str, int]]:
    """Every kind of world in turn, for as long as AGNT5_MODEL_SECONDS says, and at least ENOUGH times."""
    until = time.monotonic() + float(os.environ.get("AGNT5_MODEL_SECONDS", "0"))
    for seed in count():
        if seed >= ENOUGH and time.monotonic() >= until:
            return
        for name in WORLDS:
            yield name, seed
