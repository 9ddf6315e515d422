"""The peer's side: Restate's server, and a worker that serves its SDK. Everything on this machine's loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.load import RequestFailed, post_now
from benchmarks.peers import install
from benchmarks.processors import Children, free_ports
from benchmarks.tally import FOLDER, Readings

_START_SECONDS = 60.0


class Restate:
    """`partitions`: of its log; None leaves the server's default."""

    name = "Restate"

    def __init__(self, folder: Path, partitions: int | None = None) -> None:
        self._folder = folder
        self._partitions = partitions
        self.durability = _durability()
        self.readings = Readings(folder / "tally")
        self._node = free_ports(4)
        self._ingress, self._admin, self._app = self._node + 1, self._node + 2, self._node + 3
        self._server: Children | None = None
        self._worker: Children | None = None

    def start(self) -> None:
        data = self._folder / "restate"
        data.mkdir(parents=True, exist_ok=True)
        environment = {
            "RESTATE_BASE_DIR": str(data),
            "RESTATE_NODE_NAME": "benchmark",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_PORT": str(self._node),
            "RESTATE_INGRESS__BIND_PORT": str(self._ingress),
            "RESTATE_ADMIN__BIND_PORT": str(self._admin),
            "RESTATE_ADMIN__DISABLE_WEB_UI": "true",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
        }
        if self._partitions is not None:
            environment["RESTATE_DEFAULT_NUM_PARTITIONS"] = str(self._partitions)
        self._server = Children([str(install.server()), "--no-logo"], environment, self._folder / "restate-server.log")
        self._await(self._admin, self._server)
        self._await(self._ingress, self._server)
        self.start_worker()
        self._register()

    def start_worker(self) -> None:
        granian = str(install.python().with_name("granian"))
        command = [
            granian, "--interface", "asgi", "--host", "127.0.0.1", "--port", str(self._app), "--http", "2",
            "--workers", "1", "--loop", "uvloop", "--no-access-log", "--log-level", "warning",
            "--http2-max-concurrent-streams", "100000", "benchmarks.peers.restate_app:app",
        ]  # fmt: skip
        environment = {FOLDER: str(self._folder / "tally")}
        self._worker = Children(command, environment, self._folder / "restate-worker.log")
        self._await(self._app, self._worker)

    def kill_worker(self) -> None:
        assert self._worker is not None
        self._worker.kill()
        self._worker = None

    def close(self) -> None:
        for children in (self._worker, self._server):
            if children is not None:
                children.kill()
        self._worker = self._server = None

    def check(self) -> None:
        for children in (self._worker, self._server):
            if children is not None:
                children.check()

    def roots(self) -> dict[str, int]:
        assert self._server is not None
        assert self._worker is not None
        return {"server": self._server.pid, "worker": self._worker.pid}

    def url(self, workflow: str, *, wait: bool) -> str:
        return f"http://127.0.0.1:{self._ingress}/runs/{workflow}" + ("" if wait else "/send")

    def output(self, answer: Any) -> Any:
        return answer

    def _register(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        body = {"uri": f"http://127.0.0.1:{self._app}", "force": True}
        while True:
            try:
                post_now(f"http://127.0.0.1:{self._admin}/deployments", body)
                return
            except RequestFailed:
                self.check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    @staticmethod
    def _await(port: int, children: Children) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                children.check()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"nothing listens on port {port}:\n{children.tail()}") from None
                time.sleep(0.02)


def _durability() -> str:
    """From the server's own configuration, as it prints it."""
    environment = {**os.environ, "RESTATE_DISABLE_TELEMETRY": "true"}
    command = [str(install.server()), "--dump-config"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    section, wal = "", {}
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.startswith("rocksdb-disable-wal-fsync"):
            wal[section] = line.partition("=")[2].strip() == "false"
    if not wal:
        return "unknown: the server does not print its settings"
    if wal.get("log-server"):
        return "1 replica, log-server.rocksdb-disable-wal-fsync=false: synced to the disk before the ack"
    return "1 replica, log-server.rocksdb-disable-wal-fsync=true: in the page cache at the ack"
