"""Commands that talk to a processor: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
import typer

from agnt5.client.models import DeadLetter, at
from agnt5_engine.cli.values import text_of
from tests.cli.conftest import Agnt5
from tests.client.backends import FakeBackend


def submitted(agnt5: Agnt5, workflow: str, *inputs: str) -> str:
    done = agnt5("run", workflow, *inputs, "--no-wait")
    assert done.code == 0, done.err
    return done.out.strip()


def until_status(agnt5: Agnt5, run_id: str, status: str) -> None:
    deadline = time.monotonic() + 10
    while agnt5("runs", "show", run_id, "--json").json["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_run_prints_the_output_and_nothing_else_to_stdout(agnt5: Agnt5) -> None:
    done = agnt5("run", "double", "number=21")
    assert (done.code, done.out) == (0, "42\n")
    assert done.err.startswith("run ")


def test_run_with_json_prints_the_run_as_http_has_it(agnt5: Agnt5, backend: FakeBackend) -> None:
    run = agnt5("run", "double", "number=1", "--json").json
    assert run == httpx.get(f"{backend.urls[0]}/v1/runs/{run['run_id']}", trust_env=False).json()


def test_run_without_waiting_says_whether_the_run_was_there_already(agnt5: Agnt5) -> None:
    arguments = ("run", "double", "number=1", "--key", "only-once", "--no-wait", "--json")
    first, again = agnt5(*arguments).json, agnt5(*arguments).json
    assert (first["existing"], again) == (False, first | {"status": again["status"], "existing": True})


def test_a_failed_run_exits_with_1_and_says_why(agnt5: Agnt5) -> None:
    done = agnt5("run", "fails", "--follow")
    assert (done.code, done.out) == (1, "")
    assert "ValueError: card declined" in done.err
    assert "workflow.step.failed  charge" in done.err


def test_values_are_what_the_workflow_wants_them_to_be(agnt5: Agnt5, bare: Path) -> None:
    # The order's ID is text by the workflow's schema, though it reads as a number.
    run_id = submitted(agnt5, "approval_workflow", "order_id=0017")
    assert agnt5("runs", "show", run_id, "--json").json["input"] == {"order_id": "0017"}
    (bare / "input.json").write_text('{"number": 4}')
    assert agnt5("run", "double", "--input", "@input.json").out == "8\n"
    assert agnt5("run", "double", "--input", "-", input='{"number": 5}').out == "10\n"
    assert agnt5("run", "double", "--input", '{"number": 5}', "number=6").out == "12\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "double", "number"),
        ("run", "double", "number=1", "number=2"),
        ("run", "double", "--input", "{"),
        ("run", "double", "--input", "[1]"),
        ("run", "double", "--input", "@missing.json"),
        ("run", "double", "number=many"),
        ("run", "double", "other=1", "number=1"),
        ("runs", "list", "--limit", "0"),
        ("runs", "list", "--status", "sleeping"),
        ("runs", "signal", "abc", "go", "{"),
        ("approvals", "answer", "abc"),
        ("approvals", "answer", "abc", "yes", "--skip"),
        ("events", "publish", "t", "not json"),
        ("events", "publish", "t", "[" * 100_000),
        ("events", "publish", "t", r'"\ud800"'),
        ("run", "double", "number=1", "--input", r'{"other": "\ud800"}'),
        ("run", "double", "number=\udcff"),
        ("run", "double", "number=1", "--session", "\udcff"),
        ("runs", "list", "--session", "\udcff"),
        ("dead-letters", "redrive"),
        ("dead-letters", "redrive", "0-1", "--all"),
        ("replay", "app.py"),
        ("nonsense",),
        ("runs", "show"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_no_data(agnt5: Agnt5, arguments: tuple[str, ...]) -> None:
    done = agnt5(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "nosuchrun"),
        ("runs", "events", "nosuchrun"),
        ("runs", "events", "nosuchrun", "--follow"),
        ("runs", "cancel", "nosuchrun"),
        ("runs", "retry", "nosuchrun"),
        ("runs", "signal", "nosuchrun", "go"),
        ("approvals", "answer", "nosuchrun", "yes"),
        ("dead-letters", "show", "nosuchletter"),
        ("dead-letters", "redrive", "nosuchletter"),
        ("run", "nosuchworkflow"),
    ],
)
def test_what_is_not_there_exits_with_3(agnt5: Agnt5, arguments: tuple[str, ...]) -> None:
    done = agnt5(*arguments)
    assert (done.code, done.out) == (3, "")
    assert "nosuch" in done.err


def test_nobody_there_exits_with_4_and_says_how_to_start_one(offline: Agnt5, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnt5.client.sync.DEFAULT_URL", "http://127.0.0.1:9")
    done = offline("runs", "list")
    assert (done.code, done.out) == (4, "")
    assert "agnt5 dev MODULE" in done.err
    told = offline("runs", "list", "--url", "http://127.0.0.1:9")
    assert told.code == 4
    assert "http://127.0.0.1:9" in told.err


def test_the_noted_address_is_used_and_a_stale_note_is_not(
    offline: Agnt5, backend: FakeBackend, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agnt5_engine.gateway.addresses import note

    note(bare / ".agnt5", backend.urls[0])
    note(bare / ".agnt5", "http://127.0.0.1:9")
    assert offline("run", "double", "number=2").out == "4\n"


def test_a_wrong_setting_exits_with_2_and_names_it(agnt5: Agnt5, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGNT5_BROKER", "nonsense")
    done = agnt5("runs", "list")
    assert done.code == 2
    assert "AGNT5_BROKER" in done.err


def test_runs_are_listed_shown_and_told(agnt5: Agnt5) -> None:
    run_id = agnt5("run", "double", "number=3", "--json").json["run_id"]
    listed = agnt5("runs", "list", "--workflow", "double", "--limit", "1")
    assert run_id in listed.out
    assert "completed" in listed.out
    assert agnt5("runs", "list", "--limit", "1", "--json").json["items"][0]["run_id"] == run_id
    assert "double" in agnt5("runs", "show", run_id).out
    told = agnt5("runs", "events", run_id)
    assert [line.split("  ")[1] for line in told.out.splitlines()] == [
        "run.started",
        "workflow.step.started",
        "workflow.step.completed",
        "run.completed",
    ]
    followed = agnt5("runs", "events", run_id, "--follow", "--json").out.splitlines()
    assert [json.loads(line) for line in followed] == agnt5("runs", "events", run_id, "--json").json["items"]


def test_signal_cancel_and_retry_act_on_the_run(agnt5: Agnt5) -> None:
    run_id = submitted(agnt5, "signalled")
    assert agnt5("runs", "signal", run_id, "go", '{"a": 1}', "--id", "x", "--json").json["run_id"] == run_id
    assert agnt5("runs", "signal", run_id, "go").code == 0
    until_status(agnt5, run_id, "completed")
    assert agnt5("runs", "show", run_id, "--json").json["output"] == [{"a": 1}, None]
    late = agnt5("runs", "cancel", run_id)
    assert (late.code, late.out) == (1, "")
    waiting = submitted(agnt5, "signalled")
    assert agnt5("runs", "cancel", waiting, "--force").code == 0
    until_status(agnt5, waiting, "cancelled")
    failed = submitted(agnt5, "fails")
    until_status(agnt5, failed, "failed")
    assert agnt5("runs", "retry", failed, "--json").code == 0


def test_approvals_are_listed_and_answered(agnt5: Agnt5) -> None:
    run_id = submitted(agnt5, "approval_workflow", "order_id=9")
    until_status(agnt5, run_id, "awaiting_user_input")
    listed = agnt5("approvals", "list")
    assert run_id in listed.out
    assert "approve, reject" in listed.out
    wrong = agnt5("approvals", "answer", run_id, "maybe")
    assert wrong.code == 2
    assert 'options: ["approve", "reject"]' in wrong.err
    assert agnt5("approvals", "answer", run_id, "approve", "--user", "ada").code == 0
    until_status(agnt5, run_id, "completed")
    assert agnt5("approvals", "answer", run_id, "reject").code == 1
    two = submitted(agnt5, "two_questions")
    until_status(agnt5, two, "awaiting_user_input")
    several = agnt5("approvals", "answer", two, "approve")
    assert several.code == 1
    assert 'entries: ["0", "1"]' in several.err
    assert agnt5("approvals", "answer", two, "approve", "--entry", "0").code == 0
    assert agnt5("approvals", "answer", two, "--skip", "--entry", "1", "--json").code == 0
    until_status(agnt5, two, "completed")


def test_publishing_says_where_it_landed_and_warns_where_nobody_listens(agnt5: Agnt5) -> None:
    heard = agnt5("events", "publish", "user.signed_up", '{"user_id": "u"}', "--key", "u", "--id", "e", "--json")
    assert heard.json["topic"] == "user.signed_up"
    assert "warning" not in heard.err
    unheard = agnt5("events", "publish", "user.singed_up", "{}")
    assert unheard.code == 0
    assert unheard.out.startswith("user.singed_up partition 0 offset ")
    assert "did you mean user.signed_up?" in unheard.err


def test_dead_letters_are_listed_shown_and_redriven_by_filter(agnt5: Agnt5, backend: FakeBackend) -> None:
    for number, topic in enumerate(("orders", "orders", "users")):
        letter = DeadLetter(
            id=f"0-{number}", reason="unbound", detail="amount: missing", topic=topic, partition=0, offset=number,
            value={"n": number}, time=at(number),
        )  # fmt: skip
        backend.cluster.letters[letter.id] = letter
    assert "orders[0]@1" in agnt5("dead-letters", "list").out
    assert agnt5("dead-letters", "show", "0-2", "--json").json["value"] == {"n": 2}
    assert '"n": 1' in agnt5("dead-letters", "show", "0-1").out
    redriven = agnt5("dead-letters", "redrive", "--topic", "orders", "--json")
    assert redriven.json["items"] == [{"id": "0-0", "runs": []}, {"id": "0-1", "runs": []}]
    assert [one["id"] for one in agnt5("dead-letters", "list", "--json").json["items"]] == ["0-2"]
    backend.cluster.letters["0-3"] = backend.cluster.letters["0-2"].model_copy(update={"id": "0-3"})
    assert agnt5("dead-letters", "redrive", "0-3", "--json").json == {"runs": []}, "one is answered as over HTTP"
    mixed = agnt5("dead-letters", "redrive", "0-2", "0-9", "--json")
    assert mixed.code == 1
    assert mixed.json["items"] == [{"id": "0-2", "runs": []}, {"id": "0-9", "error": "there is no such dead letter"}]


def test_what_came_from_outside_cannot_command_the_terminal(agnt5: Agnt5, backend: FakeBackend) -> None:
    hostile = "\x1b]52;c;cm0=\x07\x9b2Jkey\r"
    letter = DeadLetter(
        id="1-0", reason="undecodable", detail=hostile, topic="orders", partition=1, offset=0, key=hostile,
        value=hostile, time=at(0),
    )  # fmt: skip
    backend.cluster.letters[letter.id] = letter
    run_id = submitted(agnt5, "signalled")
    backend.cluster.runs[run_id].record("log", name=hostile)
    told = [agnt5("dead-letters", "list"), agnt5("dead-letters", "show", "1-0"), agnt5("runs", "events", run_id)]
    told.append(agnt5("run", "no-such\x1b[2J"))
    for done in told:
        assert "\\x1b" in done.out + done.err
        assert not any(one in done.out + done.err for one in "\x1b\x07\x9b\r")
    assert agnt5("dead-letters", "show", "1-0", "--json").json["key"] == hostile
    del backend.cluster.letters[letter.id]


def test_the_key_is_sent_and_a_missing_one_is_told(
    offline: Agnt5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = FakeBackend(tmp_path / "guarded", api_keys="secret")
    try:
        monkeypatch.setenv("AGNT5_URL", guarded.urls[0])
        bare = offline("runs", "list")
        assert bare.code == 1
        assert "needs a key" in bare.err
        assert offline("runs", "list", "--api-key", "secret").code == 0
        monkeypatch.setenv("AGNT5_API_KEY", "secret")
        assert offline("run", "double", "number=1").out == "2\n"
        wrong = offline("runs", "list", "--api-key", "hunter2")
        assert wrong.code == 1
        assert "hunter2" not in wrong.err
    finally:
        guarded.close()


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_key_with_letters_beyond_ascii_is_sent_by_every_command(
    offline: Agnt5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    guarded = FakeBackend(tmp_path / "guarded", api_keys="schlüssel")
    try:
        monkeypatch.setenv("AGNT5_URL", guarded.urls[0])
        monkeypatch.setenv("AGNT5_API_KEY", f"schlüssel{ending}")
        assert offline("run", "double", "number=1").out == "2\n"
        found = {one["what"]: one["state"] for one in offline("doctor", "--json").json["items"]}
        assert found["processors"] == "ok"
    finally:
        guarded.close()


def test_what_the_replayed_code_prints_is_kept_out_of_the_data(
    agnt5: Agnt5, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnt5_engine.cli.replay._live", lambda client: [])
    (bare / "printing_flows.py").write_text("print('loading')\n")
    done = agnt5("replay", "printing_flows.py", "--all", "--json")
    assert done.code == 0
    assert done.json["items"] == []
    assert "loading" in done.err


def test_input_that_is_not_utf_8_is_refused(offline: Agnt5, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "event.json").write_bytes(b'"\xff"')
    with (bare / "event.json").open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(typer.BadParameter, match="utf-8"):
            text_of("-")
    assert offline("events", "publish", "t", "@event.json").code == 2
