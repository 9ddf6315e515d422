"""What `agnt5 run` waits for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from agnt5.client.models import Event
from agnt5_engine.cli.run import watch


def test_a_run_that_was_parked_once_and_went_on_is_watched_to_its_end() -> None:
    seen: list[str] = []

    def stream(run_id: str) -> Iterator[Event]:
        for seq, type in enumerate(("run.started", "run.paused", "run.resumed", "run.completed")):
            seen.append(type)
            yield Event(seq=seq, time=datetime.now(UTC), type=type, run_id=run_id, data={})

    client: Any = SimpleNamespace(stream=stream, get_run=lambda run_id: SimpleNamespace(status="completed"))
    watch(client, "r", everything=False)
    assert seen[-1] == "run.completed"

    seen.clear()
    client.get_run = lambda run_id: SimpleNamespace(status="paused")
    watch(client, "r", everything=False)
    assert seen[-1] == "run.paused"
