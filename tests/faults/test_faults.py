"""One of each fault, on real processes and a real broker; `make chaos` goes on for longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.processes import free_port
from tests.faults.proxy import Proxy
from tests.faults.world import FAULTS, behind, run_schedule


async def test_nothing_is_lost_or_doubled_over_one_of_each_fault(
    kafka_broker: Callable[..., Any], tmp_path: Path
) -> None:
    proxy = Proxy(free_port(), seed=3)
    port = free_port()
    broker = kafka_broker(behind(proxy, port), port=port)
    report = await run_schedule(tmp_path, broker, proxy, list(FAULTS), seed=3, rate=40, between=1.0, told=print)
    assert report.problems == []
    assert (report.lost, report.doubled, report.wrong) == (0, 0, 0)
    assert report.completed == report.accepted > 0
    assert report.executions >= report.needed
