"""What workflows and steps count while they run, readable from outside without disturbing them.

Every process has its own file of counters, shared by memory, and its own log of steps. Standard library only: the
peers' programs count with it too.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STEPS, BEGUN, DONE = 0, 1, 2
"""Steps executed; runs whose code has begun; runs whose code has come to its end."""
_SLOTS = 8
FOLDER = "BENCH_TALLY"
"""The environment variable that names the folder."""


class Tally:
    """The counters and logs that this process writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        with (folder / f"{pid}.counts").open("w+b") as file:
            file.truncate(_SLOTS * 8)
            self.counts = memoryview(mmap.mmap(file.fileno(), _SLOTS * 8)).cast("Q")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._steps = os.open(folder / f"{pid}.steps", flags, 0o644)
        self._woken = os.open(folder / f"{pid}.woken", flags, 0o644)

    def log_step(self, run: str, step: int) -> None:
        """Write down that a step begins, now."""
        os.write(self._steps, f"{run} {step} {time.time():.6f}\n".encode())

    def log_woken(self, seconds_late: float) -> None:
        os.write(self._woken, f"{seconds_late:.6f}\n".encode())


class Execution(NamedTuple):
    """One execution of a step, as its log has it."""

    pid: int
    run: str
    step: int
    time: float


class Readings:
    """Reads what all processes have counted into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def count(self, slot: int) -> int:
        total = 0
        for path in self._folder.glob("*.counts"):
            data = path.read_bytes()
            total += int.from_bytes(data[slot * 8 : slot * 8 + 8], "little")
        return total

    def executions(self) -> list[Execution]:
        """Every execution of a logged step, in order of time."""
        found = []
        for path in self._folder.glob("*.steps"):
            pid = int(path.stem)
            for run, step, moment in self._lines(path):
                found.append(Execution(pid, run, int(step), float(moment)))
        return sorted(found, key=lambda e: e.time)

    def woken(self) -> dict[int, list[float]]:
        """By process, in order: how late its sleepers woke up, in seconds."""
        paths = self._folder.glob("*.woken")
        return {int(path.stem): [float(line[0]) for line in self._lines(path)] for path in paths}

    @staticmethod
    def _lines(path: Path) -> Iterator[list[str]]:
        """Whole lines only: a process may be killed, or read, within one."""
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield line.split()
