"""Which edits `agnt5 dev` takes up, and that it says so when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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


def test_a_folder_that_may_not_be_read_keeps_no_edit_from_being_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def awatch(*folders: str, ignore_permission_denied: bool = False, **_: Any) -> AsyncIterator[Any]:
        if not ignore_permission_denied:
            raise PermissionError(13, "Permission denied", f"{folders[0]}/pgdata")
        yield {(2, f"{folders[0]}/app.py")}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("watchfiles.awatch", awatch)
    session = _Session(Settings(), ["app.py"], {}, reload=True)
    asyncio.run(session._watch())
    assert session._changed.is_set()


def test_it_is_said_when_edits_cannot_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def awatch(*folders: str, **_: Any) -> AsyncIterator[Any]:
        raise OSError("OS file watch limit reached.")
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("watchfiles.awatch", awatch)
    asyncio.run(_Session(Settings(), ["app.py"], {}, reload=True)._watch())
    assert "OS file watch limit reached." in capsys.readouterr().err
