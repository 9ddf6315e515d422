"""`agnt5 topics` and `agnt5 doctor` against a real broker."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.cli.conftest import Agnt5


@pytest.fixture
def on_kafka(offline: Agnt5, kafka: str, monkeypatch: pytest.MonkeyPatch) -> Agnt5:
    monkeypatch.setenv("AGNT5_BROKER", f"kafka://{kafka}")
    monkeypatch.setenv("AGNT5_TOPIC_PREFIX", f"cli{uuid4().hex[:8]}.")
    monkeypatch.setenv("AGNT5_PARTITIONS", "2")
    monkeypatch.setattr("agnt5.client.sync.DEFAULT_URL", "http://127.0.0.1:9")
    return offline


def test_topics_are_planned_made_and_checked(on_kafka: Agnt5, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = on_kafka("topics", "plan", "--queue", "gpu", "--json")
    assert planned.code == 1
    assert {row["state"] for row in planned.json["items"]} == {"missing"}
    assert any(row["topic"].endswith("steps.gpu") for row in planned.json["items"])

    missing = {one["what"]: one for one in on_kafka("doctor", "--json").json["items"]}
    assert missing["log"]["state"] == "ok"
    assert missing["topics"]["state"] == "warning"

    made = on_kafka("topics", "apply", "--queue", "gpu", "--json")
    assert made.code == 0, made.err
    assert {row["state"] for row in made.json["items"]} == {"created"}
    again = on_kafka("topics", "plan", "--queue", "gpu", "--json")
    assert again.code == 0
    assert {row["state"] for row in again.json["items"]} == {"as wanted"}

    healthy = on_kafka("doctor", "--json")
    assert healthy.code == 0, healthy.out
    states = {(one["what"], one["state"]) for one in healthy.json["items"]}
    assert {("log", "ok"), ("topics", "ok"), ("group", "ok"), ("clock", "ok")} <= states

    # Partitions that do not fit the settings would send every run to the wrong place.
    monkeypatch.setenv("AGNT5_PARTITIONS", "3")
    differing = on_kafka("topics", "plan")
    assert differing.code == 1
    assert "AGNT5_PARTITIONS=2" in differing.err
    told = on_kafka("doctor")
    assert told.code == 1
    assert "AGNT5_PARTITIONS=2" in told.out
