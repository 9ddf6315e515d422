"""make chaos: seeded faults on two processors and a broker for minutes, then a table of what was lost (nothing).

python -m tests.faults.chaos [--minutes 10] [--seed 1] [--rate 60] [--write]    --write puts the table into README.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.engine.processes import free_port
from tests.faults.proxy import Proxy
from tests.faults.world import Report, World, behind, kafka_script, seeded

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- make chaos -->\n", "<!-- /make chaos -->\n"


async def chaos(
    folder: Path, broker: Any, proxy: Proxy, minutes: float, seed: int, rate: float, console: Console
) -> Report:
    end = time.monotonic() + minutes * 60
    schedule = iter(seeded(seed, 10_000))
    async with World(folder, broker, proxy, seed=seed, rate=rate) as world:
        await world.flow(2)
        while time.monotonic() < end:
            fault = next(schedule)
            console.print(f"{int(end - time.monotonic()):5d} s left, {world.report.accepted} orders, next: {fault}")
            await world.inject(fault)
            console.print(f"        all partitions worked on after {world.report.recoveries[-1]:.1f} s")
            await world.flow(2)
        return await world.settle(600)


def rows(report: Report) -> list[tuple[str, str]]:
    """What it came to, line by line."""
    faults = ", ".join(f"{fault.replace('_', ' ')} {count}" for fault, count in sorted(report.faults.items()))
    return [
        ("faults injected", f"{report.faults.total()}: {faults}"),
        *((f"runs {name}", f"{getattr(report, name):,}") for name in ("accepted", "completed", "lost", "doubled")),
        ("wrong outputs, counters, histories or tables", str(report.wrong)),
        (
            "steps executed twice",
            f"{report.executions - report.needed:,} of {report.needed:,} ({report.duplicates:.2%})",
        ),
        (
            "from the end of a fault until every partition is worked on, p50",
            f"{statistics.median(report.recoveries):.1f} s",
        ),
        ("the same, longest", f"{max(report.recoveries):.1f} s"),
    ]


def table(report: Report) -> Table:
    t = Table(title="chaos", show_header=False)
    for name, value in rows(report):
        t.add_row(name, value)
    return t


def write(report: Report, given: argparse.Namespace) -> None:
    """Into README.md, with the command that gave it."""
    arguments = f"--minutes {given.minutes:g} --seed {given.seed} --rate {given.rate:g}"
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows(report))
    block = f'`make chaos ARGS="{arguments}"`, {os.cpu_count()} cores for everything:\n\n| | |\n|---|---|\n{lines}'
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}{block}{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=60, help="orders a second")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    given = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the client of the orders meets all that is done here
    script = kafka_script()
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(free_port(), given.seed)
        port = free_port()
        broker = script.Broker(Path(folder) / "kafka", port, behind(proxy, port))
        broker.start(tied=True)
        try:
            report = asyncio.run(chaos(Path(folder), broker, proxy, given.minutes, given.seed, given.rate, errors))
        finally:
            broker.kill()
    console.print(table(report))
    for problem in report.problems[:20]:
        console.print(problem)
    if given.write:
        write(report, given)
    print(json.dumps({"lost": report.lost, "doubled": report.doubled, "wrong": report.wrong}))
    return 1 if report.lost or report.doubled or report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
