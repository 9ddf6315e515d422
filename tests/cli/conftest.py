"""Commands run in this process, against gateways over the fake engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agnt5_engine.cli.root import app
from tests.client.backends import FakeBackend


class Done:
    """What a command left: its exit code, its data, what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Agnt5 = Callable[..., Done]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeBackend]:
    backend = FakeBackend(tmp_path_factory.mktemp("backend"))
    yield backend
    backend.close()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, and no setting from outside."""
    for name in list(os.environ):
        if name.startswith("AGNT5_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


@pytest.fixture
def offline(bare: Path) -> Agnt5:
    """`agnt5 ...` where nothing runs."""

    def run(*arguments: str, input: str | None = None) -> Done:
        result = CliRunner().invoke(app, [*arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def agnt5(offline: Agnt5, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Agnt5:
    """`agnt5 ...` beside running processors."""
    monkeypatch.setenv("AGNT5_URL", backend.urls[0])
    return offline
