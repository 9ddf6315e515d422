"""Every command helps itself: an example, `--json` where there is data, and a quick start."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from agnt5_engine.cli.root import app
from tests.cli.conftest import Agnt5


def commands(group: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += commands(command, (*words, name))
        else:
            found.append(((*words, name), command))
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_every_verb_of_the_contract_is_there() -> None:
    assert {words for words, _ in COMMANDS} == {
        ("dev",),
        ("processor",),
        ("worker",),
        ("init",),
        ("run",),
        ("replay",),
        ("doctor",),
        *(("runs", verb) for verb in ("list", "show", "events", "cancel", "retry", "signal")),
        *(("approvals", verb) for verb in ("list", "answer")),
        ("events", "publish"),
        *(("dead-letters", verb) for verb in ("list", "show", "redrive")),
        *(("topics", verb) for verb in ("plan", "apply")),
    }


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_command_has_help_with_an_example_and_json(words: tuple[str, ...], command: Any, offline: Agnt5) -> None:
    done = offline(*words, "--help")
    assert done.code == 0
    assert command.help
    assert "agnt5 " + " ".join(words) in command.epilog
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options


def test_help_imports_nothing_heavy() -> None:
    heavy = ("pydantic", "httpx", "fastapi", "faust", "aiokafka", "rocksdict", "structlog", "agnt5", "watchfiles")
    code = f"""
import sys
from agnt5_engine.cli.root import app
try:
    app(["--help"])
except SystemExit:
    pass
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_offers_shell_completion(offline: Agnt5) -> None:
    assert "--install-completion" in offline("--help").out


def test_the_version_is_that_of_the_distribution(offline: Agnt5) -> None:
    from importlib.metadata import version

    assert offline("--version").out.strip() == version("agnt5-kafka")


def test_init_writes_a_project_and_overwrites_nothing(offline: Agnt5, bare: Path) -> None:
    done = offline("init", "hello")
    assert done.code == 0
    assert "cd hello && agnt5 dev app.py" in done.err
    written = sorted(path.name for path in (bare / "hello").iterdir())
    assert done.out.split() == [f"hello/{name}" for name in written]
    assert {"app.py", "agnt5.toml", "README.md"} <= set(written)
    (bare / "hello" / "app.py").write_text("mine")
    (bare / "hello" / "README.md").unlink()
    again = offline("init", "hello")
    assert again.code == 1
    assert "app.py" in again.err
    assert (bare / "hello" / "app.py").read_text() == "mine"
    assert not (bare / "hello" / "README.md").exists()
    assert json.loads(offline("init", "other", "--json").out)["files"] == written
    (bare / "file").write_text("")
    assert offline("init", "file").code == 1


def test_the_embedded_engine_is_one_process_and_has_no_topics_to_plan(offline: Agnt5) -> None:
    several = offline("processor", "app.py", "--processes", "2")
    assert several.code == 2
    assert "kafka://" in several.err
    assert offline("topics", "plan").code == 2
    assert offline("processor", "app.py", "--broker", "localhost").code == 2
    assert offline("worker", "app.py", "--queue", "no good").code == 2


def test_doctor_tells_of_each_part_and_what_to_do(offline: Agnt5, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnt5.client.sync.DEFAULT_URL", "http://127.0.0.1:9")
    done = offline("doctor", "--json")
    assert done.code == 0
    found = {one["what"]: one for one in done.json["items"]}
    assert {"versions", "data directory", "API keys", "processors", "log"} <= set(found)
    assert found["processors"]["state"] == "warning"
    assert "agnt5 processor" in found["processors"]["remedy"]
    monkeypatch.setattr("agnt5_engine.cli.doctor.BROKER_SECONDS", 0.5)
    away = offline("doctor", "--broker", "kafka://127.0.0.1:9")
    assert away.code == 1
    assert "Is the broker running" in away.out


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'"up"', b"<html>"])
def test_doctor_knows_what_is_no_processor(offline: Agnt5, answer: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = offline("doctor", "--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.code == 1
    assert "is no processor" in done.out


def test_each_of_several_processes_advertises_an_address_of_its_own(
    offline: Agnt5, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Mapping[str, str]] = []

    def supervise(command: object, places: Sequence[Mapping[str, str]], vacate: object) -> int:
        started.extend(places)
        return 0

    monkeypatch.setattr("agnt5_engine.cli.supervisor.supervise", supervise)
    several = ("processor", "app.py", "--broker", "kafka://localhost:9092", "--processes", "3")
    monkeypatch.setenv("AGNT5_HTTP", "127.0.0.1:8080")
    monkeypatch.setenv("AGNT5_ADVERTISED_URL", "http://node-7:9000/x")
    assert offline(*several).code == 0
    assert [place.get("AGNT5_HTTP") for place in started] == [None, "127.0.0.1:8081", "127.0.0.1:8082"]
    assert [place.get("AGNT5_ADVERTISED_URL") for place in started] == [
        None,
        "http://node-7:9001/x",
        "http://node-7:9002/x",
    ]
    monkeypatch.setenv("AGNT5_ADVERTISED_URL", "https://node-7.example")
    done = offline(*several)
    assert done.code == 2
    assert "AGNT5_ADVERTISED_URL" in done.err
