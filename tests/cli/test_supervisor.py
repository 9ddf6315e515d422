"""Children stay alive, die with their supervisor, and are not started in vain. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Notes its process ID, then does as it is told; on SIGTERM it notes that too.
CHILD = """
import os, signal, sys, time
from agnt5_engine.cli.child import tie_to_supervisor
tie_to_supervisor()
behaviour = sys.argv[1]
def stop(*_):
    with open("stopped", "a") as file:
        file.write(f"{os.getpid()}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else stop)
with open("started", "a") as file:
    file.write(f"{os.environ['PLACE']} {os.getpid()}\\n")
if behaviour in ("1", "2"):
    sys.exit(int(behaviour))
while True:
    time.sleep(0.05)
"""

SUPERVISOR = """
import sys
from agnt5_engine.cli import supervisor
supervisor.FIRST_DELAY, supervisor.LONGEST_DELAY = 0.01, 0.02
if sys.argv[2] == "deaf":
    supervisor.GRACE_SECONDS = 0.5
places = [{"PLACE": str(number)} for number in range(int(sys.argv[1]))]
sys.exit(supervisor.supervise([sys.executable, "child.py", sys.argv[2]], places))
"""


class Supervised:
    """A supervisor with so many children that behave so."""

    def __init__(self, folder: Path, children: int, behaviour: str) -> None:
        self.folder = folder
        (folder / "child.py").write_text(CHILD)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(children), behaviour], cwd=folder, stderr=subprocess.PIPE, text=True
        )

    def started(self) -> list[tuple[int, int]]:
        """(place, process ID) of every child so far."""
        path = self.folder / "started"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(place), int(pid)) for place, pid in (line.split() for line in lines)]

    def stopped(self) -> list[int]:
        path = self.folder / "stopped"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (self.started(), self.stopped())
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said


Supervise = Callable[[int, str], Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    made: list[Supervised] = []

    def make(children: int, behaviour: str) -> Supervised:
        supervised = Supervised(tmp_path, children, behaviour)
        made.append(supervised)
        return supervised

    yield make
    for supervised in made:
        supervised.process.kill()
        supervised.process.communicate()
        for _, pid in supervised.started():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_child_that_is_killed_is_started_again_in_its_place(supervise: Supervise) -> None:
    supervised = supervise(2, "work")
    supervised.until(lambda: len(supervised.started()) == 2)
    place, victim = supervised.started()[0]
    os.kill(victim, signal.SIGKILL)
    supervised.until(lambda: len(supervised.started()) == 3)
    assert supervised.started()[2][0] == place
    supervised.process.send_signal(signal.SIGTERM)
    code, said = supervised.end()
    assert code == 0
    assert "was killed by SIGKILL" in said
    assert set(supervised.stopped()) == {pid for _, pid in supervised.started()} - {victim}


def test_of_many_children_each_that_is_killed_is_started_again(supervise: Supervise) -> None:
    many = (os.cpu_count() or 1) + 6  # more than asyncio's own threads
    supervised = supervise(many, "work")
    supervised.until(lambda: len(supervised.started()) == many)
    place, victim = max(supervised.started())
    os.kill(victim, signal.SIGKILL)
    supervised.until(lambda: len(supervised.started()) == many + 1)
    assert supervised.started()[many][0] == place
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_asks_its_children_and_waits_for_them(supervise: Supervise, number: signal.Signals) -> None:
    supervised = supervise(3, "work")
    supervised.until(lambda: len(supervised.started()) == 3)
    supervised.process.send_signal(number)
    assert supervised.end()[0] == 0
    assert set(supervised.stopped()) == {pid for _, pid in supervised.started()}


def test_a_child_that_does_not_stop_is_killed_after_its_time_of_grace(supervise: Supervise) -> None:
    supervised = supervise(1, "deaf")
    supervised.until(lambda: len(supervised.started()) == 1)
    supervised.process.send_signal(signal.SIGTERM)
    code, said = supervised.end()
    assert code == 0
    assert "killing it" in said


def test_children_stop_when_their_supervisor_is_killed(supervise: Supervise) -> None:
    supervised = supervise(2, "work")
    supervised.until(lambda: len(supervised.started()) == 2)
    supervised.process.kill()
    supervised.until(lambda: len(supervised.stopped()) == 2)


def test_a_child_that_cannot_work_with_its_settings_is_not_started_again(supervise: Supervise) -> None:
    supervised = supervise(1, "2")
    assert supervised.end()[0] == 2
    assert len(supervised.started()) == 1


def test_a_child_that_keeps_dying_at_once_is_given_up(supervise: Supervise) -> None:
    supervised = supervise(1, "1")
    code, said = supervised.end()
    assert code == 1
    assert len(supervised.started()) == 10
    assert "given up" in said or "in a row" in said
