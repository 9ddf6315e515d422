"""Real processors as child processes: started, watched over HTTP, killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class ProcessorProcess:
    """`agnt5 processor`'s inner process, with its own data directory and port."""

    def __init__(self, module: Path, data_dir: Path, *, broker: str | None = None, **settings: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.module = module
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(f".{self.port}.log")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AGNT5_")},
            "AGNT5_BROKER": broker or f"embedded://{data_dir}",
            "AGNT5_DATA_DIR": str(data_dir),
            "AGNT5_HTTP": f"127.0.0.1:{self.port}",
            "AGNT5_LOG_FORMAT": "json",
            **{f"AGNT5_{k.upper()}": str(v) for k, v in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.leave = False  # whether the group is to forget it when it is stopped

    def start(self, *, wait: bool = True) -> ProcessorProcess:
        code = (
            "import sys, uvloop; from agnt5_engine.settings import load_settings; "
            "from agnt5_engine.service import run_processor; "
            f"uvloop.run(run_processor(load_settings(), sys.argv[1:], leave={self.leave}))"
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(self.module)], env=self.env, stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the processor ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"not ready after {seconds} s:\n{self.tail()}")

    def kill(self) -> None:
        """kill -9"""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def __enter__(self) -> ProcessorProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def statuses(url: str, workflow: str | None = None) -> dict[str, int]:
    """How many runs have which status."""
    counts: dict[str, int] = {}
    cursor: str | None = None
    while True:
        params = (
            {"limit": "200"} | ({"workflow": workflow} if workflow else {}) | ({"cursor": cursor} if cursor else {})
        )
        page = httpx.get(f"{url}/v1/runs", params=params, timeout=30).raise_for_status().json()
        for run in page["items"]:
            counts[run["status"]] = counts.get(run["status"], 0) + 1
        cursor = page["next_cursor"]
        if cursor is None:
            return counts
