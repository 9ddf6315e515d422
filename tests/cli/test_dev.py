"""`agnt5 dev` and `agnt5 replay` over the embedded engine: edits are taken up, and those that do not fit are told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agnt5 import Client
from agnt5.client import UnavailableError

APP = """
from agnt5 import FunctionContext, WorkflowContext, function, workflow

@function
async def greet(ctx: FunctionContext, name: str) -> str:
    return "Hello " + name

@function
async def other(ctx: FunctionContext, name: str) -> str:
    return "Other " + name

@workflow
async def welcome(ctx: WorkflowContext, name: str) -> str:
    greeting = await ctx.step(greet, name)
    await ctx.wait_for_signal("go")
    return greeting
"""

EDITED = APP.replace('"Hello "', '"Ahoy "')
UNFIT = APP.replace("ctx.step(greet, name)", "ctx.step(other, name)")


class Dev:
    """A running `agnt5 dev app.py` in a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.app = folder / "app.py"
        self.elsewhere = folder.with_name(folder.name + "-elsewhere")
        self.elsewhere.mkdir()
        self.app.write_text(APP)
        self.client = Client(f"http://{address}", patience=30)
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("AGNT5_")}
        self.environment |= {"AGNT5_HTTP": address, "COLUMNS": "200"} | environment
        with (folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [self.agnt5, "dev", "app.py"],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    agnt5 = Path(sys.executable).with_name("agnt5")

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def until(self, condition: Callable[[], bool], patience: float = 60) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)

    def runs(self, name: str, text: str) -> bool:
        """Whether the code that runs now greets so."""
        try:
            run_id = self.client.submit("welcome", {"name": name})
            self.client.signal(run_id, "go")
            return bool(self.client.wait(run_id, timeout=5).output == f"{text} {name}")
        except (UnavailableError, TimeoutError):
            return False

    def replay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.agnt5, "replay", *arguments],
            cwd=self.folder,
            env=self.environment | {"AGNT5_URL": f"http://{self.environment['AGNT5_HTTP']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.client.close()


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    dev.end()


@pytest.mark.slow
def test_an_edit_is_taken_up_and_one_that_does_not_fit_a_live_run_is_told_with_the_remedy(dev: Dev) -> None:
    dev.until(lambda: dev.runs("Ada", "Hello"))
    live = dev.client.submit("welcome", {"name": "Grace"})
    dev.until(lambda: bool(dev.client.get_run(live).waiting_on))

    # Before a deploy: does today's code still go the way of the run?
    assert dev.replay("app.py", "--all").returncode == 0
    unfit = dev.elsewhere / "unfit.py"
    unfit.write_text(UNFIT)
    before = dev.replay(str(unfit), live)
    assert before.returncode == 1
    assert "greet" in before.stdout + before.stderr
    assert "other" in before.stdout + before.stderr

    # A step's code may change: what it returned before stays.
    dev.app.write_text(EDITED)
    dev.until(lambda: dev.runs("Ada", "Ahoy"))

    dev.app.write_text(UNFIT)
    dev.until(lambda: "the code no longer fits a live run" in dev.said())
    assert "ctx.patched" in dev.said()
    assert f"agnt5 runs cancel {live}" in dev.said()

    dev.app.write_text("def broken(:\n")
    dev.until(lambda: "Waiting for a change." in dev.said())

    # The edit undone, the run goes on by itself.
    dev.app.write_text(APP)
    dev.until(lambda: dev.runs("Ada", "Hello"))
    dev.client.signal(live, "go")
    assert dev.client.wait(live, timeout=30).output == "Hello Grace"

    dev.process.send_signal(signal.SIGTERM)
    assert dev.process.wait(30) == 0


@pytest.mark.slow
def test_an_engine_that_wants_a_key_which_dev_does_not_have_is_ready_all_the_same(tmp_path: Path) -> None:
    dev = Dev(tmp_path, AGNT5_API_KEYS="k" * 40)
    try:
        dev.until(lambda: "cannot be told of" in dev.said())
        assert "Ready: http://" in dev.said()
        assert "AGNT5_API_KEY" in dev.said()
    finally:
        dev.end()
