from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("agnt5_kafka-*.whl")
    return zipfile.ZipFile(path)


def in_wheel(path: Path, source: str) -> str:
    return path.relative_to(ROOT / source).as_posix()


def test_the_wheel_carries_every_module_and_every_data_file(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", "sdk", "engine"], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = {path.split("/", 1)[1] for path in tracked.stdout.split() if (ROOT / path).exists()}
    assert wanted - set(wheel.namelist()) == set()
    assert {"agnt5/py.typed", "agnt5_engine/py.typed"} <= set(wheel.namelist())


def test_the_wheel_carries_every_schema_ever_released(wheel: zipfile.ZipFile) -> None:
    schemas = {f"agnt5_engine/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.avsc")}
    assert schemas
    assert schemas <= set(wheel.namelist())


def test_the_wheel_puts_the_command_on_the_path_and_registers_both_transports(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "agnt5 = agnt5_engine.cli.root:app" in text
    assert re.search(r"\[faust\.transports\]\nagnt5-embedded = .+\nagnt5-kafka = ", text)
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_clients_whose_internals_are_overridden_are_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    exact = {re.split(r"[\[=]", line)[0] for line in project["dependencies"] if "==" in line}
    assert exact == {"faust-streaming", "mode-streaming", "aiokafka"}


@pytest.mark.parametrize("name", ["runtime", "build", "dev"])
def test_pinned_lists_hash_every_file_and_name_no_place_to_get_it_from(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n?", "", text).strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry
    assert "://" not in text


@pytest.mark.parametrize("name", ["runtime", "dev"])
def test_pinned_lists_hold_every_dependency_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = list(project["project"]["dependencies"])
    if name == "dev":
        wanted += [line for line in project["dependency-groups"]["dev"] if isinstance(line, str)]
    pinned = set(re.findall(r"(?m)^([a-z0-9.-]+)(?:\[|==)", (ROOT / "requirements" / f"{name}.txt").read_text()))
    names = {re.sub(r"[._]", "-", re.split(r"[\[<>=;~! ]", line)[0]).lower() for line in wanted}
    assert {name for name in names if name not in {re.sub(r"[._]", "-", p) for p in pinned}} == set()
