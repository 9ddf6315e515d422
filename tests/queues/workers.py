"""Real workers as child processes: started, watched through what their steps note, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_CODE = (
    "import sys, uvloop; from agnt5_engine.settings import load_settings; "
    "from agnt5_engine.queues.worker import run_worker; "
    "uvloop.run(run_worker(load_settings(), [sys.argv[1]], 'pool'))"
)
FLOWS = Path(__file__).with_name("flows.py")


class WorkerProcess:
    """`agnt5 worker flows.py --queue pool`'s inner process."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.log = folder / "worker.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith("AGNT5_")}
        env |= {f"AGNT5_{k.upper()}": str(v) for k, v in settings.items()} | {"AGNT5_LOG_FORMAT": "json"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen([sys.executable, "-c", _CODE, str(FLOWS)], env=env, stdout=out, stderr=out)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
                raise


class Notes:
    """What the steps have noted."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        file.touch()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in Path(self.file).read_text("utf-8").splitlines()]

    def count(self, what: str) -> Counter[str]:
        return Counter(name for kind, name, _ in self.lines() if kind == what)

    def where(self, name: str, what: str = "begin") -> list[int]:
        return [int(pid) for kind, seen, pid in self.lines() if (kind, seen) == (what, name)]
