"""Keeping children alive: one that dies is started again in its place, until asked to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agnt5_engine.cli.child import LIFELINE
from agnt5_engine.cli.exits import FAILED, USAGE
from agnt5_engine.cli.terminal import say, warn
from agnt5_engine.place import PLACE

GRACE_SECONDS = 30.0
"""How long a child may take to checkpoint and go."""
QUICK_SECONDS = 5.0
"""A child that lived shorter than this did not get far."""
QUICK_DEATHS = 10
"""So many of those in a row, and its place is given up."""
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0


Vacate = Callable[[str], Awaitable[None]]


@dataclass
class Place:
    """One child's place: the variables it is started with, and how it has fared."""

    number: int
    environment: Mapping[str, str]
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    process: subprocess.Popen[bytes] | None = None
    quick_deaths: int = 0
    given_up: bool = False
    code: int = 0
    since: float = field(default_factory=time.monotonic)


class Supervisor:
    """Runs `command` once per place, each with that place's variables. `vacate` is told the name of a place (see
    `agnt5_engine.place`) that stays empty while others go on."""

    def __init__(self, command: Sequence[str], places: Sequence[Mapping[str, str]], vacate: Vacate | None) -> None:
        self._command = list(command)
        self._vacate = vacate
        self._places = [Place(number, environment) for number, environment in enumerate(places)]
        # asyncio's own threads may be fewer than the children: then the death of some would go unnoticed.
        self._waiters = ThreadPoolExecutor(len(places))
        self._stopping = asyncio.Event()
        self._signals = 0
        # The children hold the reading end: it breaks when this process dies, even by kill -9.
        self._lifeline, self._own_end = os.pipe()

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT, or until every place is given up; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            await asyncio.gather(*(self._keep(place) for place in self._places))
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            os.close(self._lifeline)
            os.close(self._own_end)
        return max((place.code for place in self._places if place.given_up), default=0)

    def _asked_to_stop(self) -> None:
        self._signals += 1
        self._stopping.set()
        # The second time somebody is in a hurry.
        self._signal(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.process is not None and place.process.poll() is None:
                place.process.send_signal(number)

    async def _keep(self, place: Place) -> None:
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            self._start(place)
            code = await self._ended(place)
            if self._stopping.is_set() or code == 0:
                return
            if code == USAGE:
                place.code, place.given_up = USAGE, True
                self._give_up(place)
                return
            lived = time.monotonic() - place.since
            place.quick_deaths = place.quick_deaths + 1 if lived < QUICK_SECONDS else 0
            if place.quick_deaths >= QUICK_DEATHS:
                place.code, place.given_up = FAILED, True
                warn(f"child {place.number} died {QUICK_DEATHS} times in a row at once; its place is given up")
                if self._vacate is not None:
                    await self._until_stopped(self._vacate(place.name))
                return
            delay = FIRST_DELAY if lived >= QUICK_SECONDS else min(delay * 2, LONGEST_DELAY)
            warn(f"child {place.number} {_how(code)} after {lived:.1f} s; starting it again")
            await self._pause(delay)

    def _give_up(self, place: Place) -> None:
        """A child whose settings or modules cannot be used: none of the others will fare better for long."""
        if all(other.given_up or other.process is None or other is place for other in self._places):
            return
        say("stopping the other children too")
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def _start(self, place: Place) -> None:
        environment = {**os.environ, **place.environment, LIFELINE: str(self._lifeline), PLACE: place.name}
        place.since = time.monotonic()
        place.process = subprocess.Popen(self._command, env=environment, pass_fds=(self._lifeline,))

    async def _ended(self, place: Place) -> int:
        assert place.process is not None
        waiting = asyncio.get_running_loop().run_in_executor(self._waiters, place.process.wait)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not waiting.done():
            done, _ = await asyncio.wait((waiting,), timeout=GRACE_SECONDS)
            if not done:
                warn(f"child {place.number} did not stop within {GRACE_SECONDS:.0f} s; killing it")
                place.process.kill()
        return await waiting

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        working.cancel()
        await asyncio.wait((working,))
        if not working.cancelled():
            working.result()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def supervise(command: Sequence[str], places: Sequence[Mapping[str, str]], vacate: Vacate | None = None) -> int:
    """Run the children until stopped; returns the exit code."""

    async def work() -> int:
        return await Supervisor(command, places, vacate).run()

    return asyncio.run(work())
