"""CPU time, memory and written bytes of process trees, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


class Spent(NamedTuple):
    """What a stretch of work used: wall seconds, CPU seconds by name, and cores that processes not ours kept busy."""

    seconds: float
    cpu: dict[str, float]
    foreign_cores: float

    def cores(self, name: str) -> float:
        return self.cpu[name] / self.seconds


class Watch:
    """Measures the CPU of trees of processes, given by name, between `start` and `stop`; this process is `load`."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = dict(roots)

    def start(self) -> Watch:
        self._cpu, self._busy, self._began = self._all(), _machine_busy(), time.perf_counter()
        return self

    def stop(self) -> Spent:
        seconds = time.perf_counter() - self._began
        now, busy = self._all(), _machine_busy()
        cpu = {name: now[name] - self._cpu[name] for name in now}
        foreign = max(0.0, busy - self._busy - sum(cpu.values())) / seconds
        return Spent(seconds, cpu, foreign)

    def _all(self) -> dict[str, float]:
        mine = os.times()
        return {"load": mine.user + mine.system} | {name: cpu_seconds(pid) for name, pid in self._roots.items()}


def tree(root: int) -> list[int]:
    """A process and all that descend from it and live."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the tree, with children that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for pid in tree(root) if (fields := _stat(pid))) / _TICKS


def rss_bytes(root: int) -> int:
    """Resident memory of the tree. Pages that its processes share are counted in each."""
    total = 0
    for pid in tree(root):
        try:
            total += int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue
    return total


def written_bytes(root: int) -> int:
    """Bytes that the tree has had written to disks."""
    total = 0
    for pid in tree(root):
        try:
            text = (_PROC / str(pid) / "io").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes"))
    return total


def gone(pid: int) -> bool:
    """Whether a process has ended with all its threads (it may still wait for its parent to notice)."""
    fields = _stat(pid)
    # Until the last thread is gone, so are its sockets not.
    return not fields or (fields[0] in "ZX" and int(fields[17]) <= 1)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def _machine_busy() -> float:
    """CPU seconds of all processes of the machine, without interrupts and stolen time."""
    user, nice, system, *_ = map(int, (_PROC / "stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system) / _TICKS


def loop_ns() -> float:
    """Nanoseconds that one turn of a plain Python loop takes just now, with nothing of ours running. On hardware shared
    with other guests it varies by half, and no counter of this machine shows that."""
    turns, found = range(100_000), {}
    times = []
    for _ in range(3):
        began = time.perf_counter_ns()
        for turn in turns:
            found[turn & 1023] = turn
        times.append((time.perf_counter_ns() - began) / len(turns))
    return min(times)
