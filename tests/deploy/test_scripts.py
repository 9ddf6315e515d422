from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import ROOT

SHELL = [ROOT / ".ci" / "run", *(ROOT / "scripts" / name for name in ("check", "environment", "lock"))]


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_a_shell_script_passes_its_linter_and_can_be_called(script: Path) -> None:
    linter = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    assert linter is not None
    done = subprocess.run([linter, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(script, os.X_OK)


def test_a_broker_that_was_frozen_answers_nobody_until_it_goes_on(kafka_broker: Callable[..., Any]) -> None:
    broker = kafka_broker()
    request = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # ApiVersions
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", broker.ports["PLAINTEXT"])) as connection:
            connection.sendall(request)
            assert connection.recv(4096)
            broker.pause()
            connection.sendall(request)
            connection.settimeout(0.02)
            with pytest.raises(TimeoutError):
                connection.recv(4096)
            broker.resume()
            connection.settimeout(10)
            assert connection.recv(4096)


def test_an_unsuitable_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for folder in ("scripts", "requirements"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "env", "cat", "cksum", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    # A Python that is too old, or has no venv, says no to the question.
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / "scripts" / "environment"), "runtime"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Found no Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
