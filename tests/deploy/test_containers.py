from __future__ import annotations

import fnmatch
import io
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyOptions

from agnt5_engine.settings import PREFIX, Settings
from tests.deploy.manifests import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [
        (line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line and not line.startswith("#")
    ]


def last_stage() -> list[tuple[str, str]]:
    lines = instructions()
    return lines[max(i for i, (name, _) in enumerate(lines) if name == "FROM") :]


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def processors() -> list[dict[str, Any]]:
    return [service for name, service in services().items() if name.startswith("processor-")]


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if linter is None:
        # Its wheels carry a program; where there is none for the platform, the other tests here remain.
        assert sys.platform not in ("linux", "darwin")
        return
    done = subprocess.run([linter, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_nobody_in_particular_and_stops_gracefully() -> None:
    stage = last_stage()
    assert [value for name, value in stage if name == "FROM"] == ["python:3.13-slim"]
    assert [value for name, value in stage if name == "USER"] == ["10001:10001"]
    assert ("STOPSIGNAL", "SIGTERM") in stage
    assert ("VOLUME", "/var/lib/agnt5") in stage
    assert any(name == "HEALTHCHECK" and "/healthz" in value for name, value in stage)
    # Exec form: the engine is process 1 and gets the signal.
    assert all(value.startswith("[") for name, value in stage if name in ("ENTRYPOINT", "CMD"))
    assert not any(name == "ADD" for name, _ in instructions())


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python agnt5 processor orders.py", True),
        ("docker-init -- agnt5 processor worker", True),
        ("python agnt5 worker processor --queue gpu", False),
    ],
)
def test_the_image_asks_a_processor_for_its_health_and_not_a_worker_which_serves_no_http(
    command: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = next(value for name, value in last_stage() if name == "HEALTHCHECK")
    python, flag, code = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    urls: list[str] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: urls.append(url))
    exec(code, {"open": lambda path: io.StringIO(command.replace(" ", "\0"))})
    assert bool(urls) is asked


def test_the_image_installs_only_what_is_pinned_by_hash() -> None:
    installs = [
        part for name, value in instructions() if name == "RUN" for part in value.split("&&") if "pip install" in part
    ]
    assert installs
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)


def test_everything_the_image_copies_exists_and_passes_the_ignore_file() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for name, value in instructions()
        if name == "COPY" and "--from" not in value
        for source in [part for part in value.split() if not part.startswith("--")][:-1]
    ]
    for source in sources:
        assert (ROOT / source).exists()
        assert source == "." or any(fnmatch.fnmatch(source.rstrip("/"), f"{path}*") for path in allowed)
    # What the wheel is built from.
    assert {"engine", "sdk", "schemas", "pyproject.toml", "README.md", "LICENSE"} <= set(allowed)


def test_the_compose_file_fits_the_compose_specification() -> None:
    compose = PyOptions(apply_merge=True).from_yaml(COMPOSE.read_text())
    compose.validate()
    compose.to_spec()
    assert set(compose.service_names()) == {"kafka", "topics", "processor-1", "processor-2"}


def test_each_service_has_a_healthcheck_and_processors_wait_for_kafka() -> None:
    assert all("healthcheck" in service for service in services().values())
    for service in processors():
        assert service["depends_on"]["kafka"] == {"condition": "service_healthy"}
        assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        assert "/readyz" in service["healthcheck"]["test"][-1]


def test_two_processors_differ_in_identity_address_and_data_and_share_the_rest() -> None:
    first, second = processors()
    for name in ("AGNT5_INSTANCE_ID", "AGNT5_ADVERTISED_URL"):
        assert first["environment"][name] != second["environment"][name]
    assert first["volumes"] != second["volumes"]
    for service in (first, second):
        assert service["command"] == ["processor", "orders.py"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["environment"]["AGNT5_API_KEYS"].startswith("${AGNT5_API_KEYS:?")
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_settings_in_the_compose_file_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for service in processors():
        for name, value in service["environment"].items():
            if name.startswith(PREFIX):
                monkeypatch.setenv(name, "key" if name == "AGNT5_API_KEYS" else value)
        assert not Settings().is_embedded


def test_kafka_is_one_kraft_node_whose_listeners_fit_together() -> None:
    environment = services()["kafka"]["environment"]
    assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
    listeners = {part.split("://")[0] for part in environment["KAFKA_LISTENERS"].split(",")}
    mapped = {part.split(":")[0] for part in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    advertised = {part.split("://")[0] for part in environment["KAFKA_ADVERTISED_LISTENERS"].split(",")}
    assert listeners == mapped == advertised | {environment["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert environment["KAFKA_INTER_BROKER_LISTENER_NAME"] in advertised
    assert {environment[name] for name in environment if name.endswith(("REPLICATION_FACTOR", "MIN_ISR"))} == {1}
    assert "ZOOKEEPER" not in str(environment).upper()
