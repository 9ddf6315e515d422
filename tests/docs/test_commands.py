"""Every command and option named on the page of the command line exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agnt5_engine.cli.root import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
ROWS = re.findall(r"(?m)^\| `agnt5 ([^`]+)`", PAGE.read_text())


def commands(row: str) -> list[list[str]]:
    """`runs list\\|show MODULE...` is two commands."""
    words = row.replace("\\|", "|").split()
    names = [words[0]]
    if len(words) > 1 and re.fullmatch(r"[a-z|]+", words[1]):
        return [[*names, verb] for verb in words[1].split("|")]
    return [names]


@pytest.mark.parametrize("row", ROWS)
def test_every_documented_command_and_option_exists(row: str) -> None:
    for command in commands(row):
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        assert shown.exit_code == 0, shown.output
        for option in re.findall(r"--[a-z]+", row):
            assert option in shown.output, f"agnt5 {' '.join(command)} has no {option}"


def test_every_command_is_documented() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).output
    there = set(re.findall(r"(?m)^│ ([a-z-]+)  ", shown[shown.index("Commands") :]))
    assert there == {row.split()[0] for row in ROWS}
