"""make chaos: seeded faults on two processors and a broker for minutes, then a table of what was lost (nothing).

python -m tests.faults.chaos [--minutes 10] [--seed 1] [--rate 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.world import Report, World, kafka_script, seeded


async def chaos(folder: Path, broker: Any, minutes: float, seed: int, rate: float, console: Console) -> Report:
    end = time.monotonic() + minutes * 60
    schedule = iter(seeded(seed, 10_000))
    async with World(folder, broker, seed=seed, rate=rate) as world:
        await world.flow(2)
        while time.monotonic() < end:
            fault = next(schedule)
            console.print(f"{int(end - time.monotonic()):5d} s left, {world.report.accepted} orders, next: {fault}")
            await world.inject(fault)
            await world.flow(2)
        return await world.settle(600)


def table(report: Report) -> Table:
    t = Table(title="chaos", show_header=False)
    for fault, count in sorted(report.faults.items()):
        t.add_row(f"fault: {fault.replace('_', ' ')}", str(count))
    t.add_section()
    for name in ("accepted", "completed", "lost", "doubled", "wrong"):
        t.add_row(f"runs {name}", str(getattr(report, name)))
    t.add_row("duplicate executions", f"{report.executions - report.needed} ({report.duplicates:.2%})")
    t.add_row("recovery p50", f"{statistics.median(report.recoveries):.1f} s")
    t.add_row("recovery max", f"{max(report.recoveries):.1f} s")
    return t


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=60, help="orders a second")
    given = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    script = kafka_script()
    with tempfile.TemporaryDirectory() as folder:
        broker = script.Broker(Path(folder) / "kafka")
        broker.start(tied=True)
        try:
            report = asyncio.run(chaos(Path(folder), broker, given.minutes, given.seed, given.rate, errors))
        finally:
            broker.kill()
    console.print(table(report))
    for problem in report.problems[:20]:
        console.print(problem)
    print(json.dumps({"lost": report.lost, "doubled": report.doubled, "wrong": report.wrong}))
    return 1 if report.lost or report.doubled or report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
