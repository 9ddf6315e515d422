"""Brings the peer: its server from npm, its SDK from PyPI, both into benchmarks/.peers, at fixed versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".peers"
SERVER = "@restatedev/restate-server@1.7.12"
PACKAGES = ("restate-sdk==1.3.0", "granian==2.8.7", "uvloop==0.23.0")
_VENV = FOLDER / "venv"


class Unavailable(Exception):
    """The peer cannot be run here; the message says what is missing."""


def python() -> Path:
    return _VENV / "bin" / "python"


def server() -> Path:
    """The server's binary. Raises Unavailable."""
    found = sorted((FOLDER / "node_modules" / "@restatedev").glob("restate-server-*/bin/restate-server"))
    if not found:
        raise Unavailable(f"{SERVER} has no binary for this machine")
    return found[0]


def install() -> None:
    """Bring what is not there yet. Raises Unavailable."""
    wanted = "\n".join((SERVER, *PACKAGES))
    stamp = FOLDER / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("no `npm` on PATH: install Node.js, which brings Restate's server")
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"bringing {wanted.replace(chr(10), ', ')} into {FOLDER} (once)", file=sys.stderr)
    _run([npm, "install", "--prefix", str(FOLDER), "--ignore-scripts", "--no-audit", "--no-fund", SERVER])
    _run([sys.executable, "-m", "venv", str(_VENV)])
    _run([str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES])
    server()
    stamp.write_text(wanted)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
