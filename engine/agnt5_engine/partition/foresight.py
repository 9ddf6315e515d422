"""Brings runs whose timers are about to ring into memory beforehand, while there is time.

A run that sleeps for days is in the table only. Reading its rows and replaying its history is more than half of waking
it, so thousands that are due in the same second would all be late by that.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from agnt5_engine.partition.timers import Timers
from agnt5_engine.runs.activate import prepare
from agnt5_engine.runs.state import PartitionState

_AHEAD_MS = 2_000
_EVERY = 0.25  # seconds
_MOST = 12_000
"""Runs brought beforehand that may be in memory at a time, some 10 kB each, where one process owns all partitions. A
partition has its share: the next to be due."""
_AT_ONCE = 16
_PAUSE = 0.001  # seconds in which others have their turn


class Foresight:
    """For one partition, from `start` to `close`."""

    def __init__(self, state: PartitionState, timers: Timers, partitions: int) -> None:
        self._state = state
        self._timers = timers
        self._most = max(1, _MOST // partitions)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        state = self._state
        while True:
            await asyncio.sleep(_EVERY)
            near = self._timers.near(_AHEAD_MS, self._most)
            state.foreseen = set(near)
            absent = [i for i in near if (run := state.runs.get(i)) is None or run.activation is None]
            for i, run_id in enumerate(absent, 1):
                with suppress(Exception):  # whoever applies its timer's record meets that too, and can say so
                    if (run := state.run(run_id)) is not None:
                        prepare(state, run)
                if i % _AT_ONCE == 0:
                    await asyncio.sleep(_PAUSE)
