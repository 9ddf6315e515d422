"""Which edits `agnt5 dev` takes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from agnt5_engine.cli.dev import _Session
from agnt5_engine.settings import Settings


@pytest.mark.parametrize("place", ["shop", "venv/shop", "node_modules/tool.egg-info"])
def test_edits_are_taken_up_wherever_the_project_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    project = tmp_path / place
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    session = _Session(Settings(), ["app.py"], {}, reload=True)
    assert session._is_code(None, str(project / "app.py"))
    assert session._is_code(None, str(project / "flows" / "orders.py"))
    assert not session._is_code(None, str(project / "venv" / "lib" / "other.py"))
    assert not session._is_code(None, str(project / "notes.txt"))
