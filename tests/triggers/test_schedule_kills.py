"""A schedule survives kills: every due time starts one run, none is left out, none comes twice."""

from __future__ import annotations

import random
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.processes import ProcessorProcess

FLOWS = Path(__file__).with_name("ticks.py")


@pytest.mark.slow
def test_every_due_time_starts_one_run_however_often_the_processor_is_killed(tmp_path: Path) -> None:
    random.seed(5)
    processor = ProcessorProcess(FLOWS, tmp_path / "data", partitions=2, checkpoint_interval=0.2)
    for _ in range(3):
        processor.start()
        time.sleep(random.uniform(0.2, 1.5))
        processor.kill()
        time.sleep(random.uniform(0, 1))
    with processor:
        end = time.monotonic() + 60
        while True:
            due = sorted(datetime.fromisoformat(run["trigger"]["due"]).timestamp() for run in runs(processor))
            if due and time.time() - due[-1] < 1:
                break
            assert time.monotonic() < end, processor.tail()
            time.sleep(0.1)
    assert len(due) > 10
    assert {round((later - earlier) * 1000) for earlier, later in pairwise(due)} == {250}


def runs(processor: ProcessorProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        query = {"limit": "200", "workflow": "tick"} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{processor.url}/v1/runs", params=query, timeout=30).raise_for_status().json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
