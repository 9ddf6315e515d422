"""Processors as child processes: started, watched over HTTP, killed. They die with this process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.accounting import gone, tree

ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0
_POLL = 0.01


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the system gives to outgoing connections."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000 - count)
        with contextlib.ExitStack() as stack:
            try:
                for offset in range(count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
    raise RuntimeError(f"found no {count} free ports in a row")


class Children:
    """A child process and what descends from it."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        kept = {k: v for k, v in os.environ.items() if not k.startswith("AGNT5_")}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                env={**kept, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        # The pipe closes when this process ends, however it ends.
        watch = f"read _; kill -9 -- -{self.pid}"
        self._watcher = subprocess.Popen(["sh", "-c", watch], stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises RuntimeError, with the end of its log, when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"a child ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9 for all of it at once; returns when they are gone."""
        doomed = tree(self.pid)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while not all(gone(pid) for pid in doomed):
            time.sleep(0.001)
        self._unwatch()

    def stop(self, seconds: float = 30.0) -> None:
        """SIGTERM, and wait for the end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                return
        self._unwatch()

    def _unwatch(self) -> None:
        self._watcher.kill()
        self._watcher.communicate()


class Processor:
    """One `agnt5 processor`. With one process, the supervisor is left out: who kills the child is the benchmark, and
    it decides when the next one starts."""

    def __init__(self, environment: Mapping[str, str], folder: Path, processes: int = 1) -> None:
        self.processes = processes
        self._port = free_ports(processes)
        self._environment = {**environment, "AGNT5_HTTP": f"127.0.0.1:{self._port}", "AGNT5_LOG_FORMAT": "json"}
        self._log = folder / f"processor-{self._port}.log"
        self._children: Children | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._children is not None
        return self._children.pid

    def launch(self) -> None:
        """Start, without waiting."""
        if self.processes == 1:
            command = [sys.executable, "-m", "agnt5_engine.cli.child", "processor", "benchmarks.flows"]
        else:
            agnt5 = str(Path(sys.executable).with_name("agnt5"))
            command = [agnt5, "processor", "benchmarks.flows", "--processes", str(self.processes)]
        self._children = Children(command, self._environment, self._log)

    def start(self, partitions: int) -> float:
        """Start, wait until every partition is caught up; returns how long that took in seconds."""
        began = time.perf_counter()
        self.launch()
        self.wait_ready(partitions)
        return time.perf_counter() - began

    def wait_ready(self, partitions: int, seconds: float = START_SECONDS) -> None:
        """Until these processes together have caught up with so many partitions."""
        end = time.monotonic() + seconds
        while self.caught_up() < partitions:
            self.check()
            if time.monotonic() > end:
                raise TimeoutError(f"not ready within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(_POLL)

    def caught_up(self) -> int:
        """How many partitions are caught up, by what /readyz says."""
        found = 0
        for number in range(self.processes):
            body = _readiness(self._port + number)
            found += sum(one["caught_up"] for one in body.get("partitions", ()))
        return found

    def check(self) -> None:
        """Raises RuntimeError when it has ended by itself."""
        if self._children is not None:
            self._children.check()

    def tail(self) -> str:
        assert self._children is not None
        return self._children.tail()

    def kill(self) -> None:
        if self._children is not None:
            self._children.kill()
            self._children = None

    def stop(self) -> None:
        if self._children is not None:
            self._children.stop()
            self._children = None


def _readiness(port: int) -> dict[str, list[dict[str, bool]]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        body: dict[str, list[dict[str, bool]]] = json.loads(connection.getresponse().read())
        return body
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
