"""Measurements as JSON lines: circumstances, and one line for each case of each repeat."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import Figures, Summary, summary

FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("aiokafka", "faust-streaming", "rocksdict", "fastavro", "pydantic-core", "uvloop")

_LONGEST = 4_000


class Case(NamedTuple):
    """What names a row of a table. `side`: who was measured (`ours`, or a peer), under which settings."""

    work: str
    side: str
    case: str


class Results:
    """A file of results that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, **circumstances: Any) -> None:
        """What a reader should know besides the figures."""
        self._write({"circumstances": circumstances})

    def add(self, case: Case, repeat: int, figures: Figures) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        self._write({**case._asdict(), "repeat": repeat, "figures": rounded})

    def failed(self, work: str, side: str, repeat: int, error: BaseException) -> None:
        what = f"{type(error).__name__}: {error}"
        self._write({"work": work, "side": side, "repeat": repeat, "failed": _short(what)})

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")


class Measured(NamedTuple):
    """A file of results, read."""

    circumstances: dict[str, Any]
    cases: dict[Case, dict[str, Summary]]
    failures: list[dict[str, Any]]


def _short(text: str) -> str:
    """The beginning, which says what it is, and the end, where logs say why."""
    return text if len(text) <= _LONGEST else f"{text[:200]} ... {text[200 - _LONGEST :]}"


def read(path: Path) -> Measured:
    """Raises OSError, or ValueError when it is no file of results."""
    circumstances: dict[str, Any] = {}
    values: dict[Case, dict[str, list[float]]] = {}
    failures = []
    for line in _lines(path):
        if "circumstances" in line:
            for name, value in line["circumstances"].items():
                known = circumstances.get(name)
                circumstances[name] = known | value if isinstance(known, dict) else value
        elif "failed" in line:
            failures.append(line)
        else:
            found = values.setdefault(Case(line["work"], line["side"], line["case"]), {})
            for name, value in line["figures"].items():
                found.setdefault(name, []).append(value)
    cases = {case: {name: summary(all_) for name, all_ in found.items()} for case, found in values.items()}
    return Measured(circumstances, cases, failures)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            yield json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


def latest() -> Path | None:
    """The newest file of results."""
    return max(FOLDER.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, default=None)


def fresh(kind: str) -> Path:
    return FOLDER / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


def machine() -> dict[str, Any]:
    """What a reader must know to judge the numbers."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(FOLDER.parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
