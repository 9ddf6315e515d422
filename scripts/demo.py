"""Orders through kill -9: what `make demo` runs.

A real processor (`agnt5 processor examples/orders.py`) on the embedded engine, real order events on a topic, and
`kill -9` while orders are inside their charge and between charge and confirmation. What the closing table counts is
what the step functions did, read from the file they append to, not the engine's own word. The exit code is 0 only if
every order was confirmed and charged once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ORDERS = ROOT / "examples" / "orders.py"
TOPIC = "order.placed"
STEP_SECONDS = 0.25
PACE = 0.03  # seconds between two orders
PATIENCE = 60.0  # seconds for anything to happen, before the demo calls itself failed

console = Console(highlight=False)


class DemoFailed(Exception):
    """What did not happen."""


@dataclass
class Calls:
    """What the step functions did to one order."""

    charge_keys: set[str] = field(default_factory=set)
    confirm_keys: set[str] = field(default_factory=set)
    charge_pids: list[int] = field(default_factory=list)
    confirm_pids: list[int] = field(default_factory=list)
    charged_at: list[float] = field(default_factory=list)

    @property
    def fate(self) -> str:
        """Where the kill found this order."""
        if len(self.charge_pids) > 1:
            return "killed inside its charge"
        if len(self.confirm_pids) > 1:
            return "killed inside its confirmation"
        if self.charge_pids != self.confirm_pids:
            return "killed past it, unconfirmed"
        return "left in peace"


class Processor:
    """The engine under test: a real process, and everything it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "charges.jsonl"
        self.log = folder / "processor.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.http = httpx.Client(base_url=f"http://{self.address}", timeout=PATIENCE)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGNT5_")},
            "AGNT5_BROKER": f"embedded://{folder / 'log'}",
            "AGNT5_HTTP": self.address,
            "ORDERS_LEDGER": str(self.ledger),
            "ORDERS_STEP_SECONDS": str(STEP_SECONDS),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("agnt5")), *arguments]

    def start(self) -> float:
        """Start it and wait until it is ready; the seconds that took."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("processor", str(ORDERS)),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() - began < PATIENCE:
            if self.process.poll() is not None:
                raise DemoFailed(f"the processor ended with exit code {self.process.returncode}")
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/readyz").status_code == 200:
                    return time.monotonic() - began
            time.sleep(0.05)
        raise DemoFailed("the processor did not become ready")

    def kill(self) -> None:
        """kill -9, the supervisor and its children alike: nobody gets to clean up."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def publish(self, number: int) -> None:
        order = {"order_id": f"A-{number:03}", "amount": 10 + number}
        answer = self.http.post(
            "/v1/events",
            json={"event_name": TOPIC, "payload": order, "event_id": f"placed-{number}", "key": f"A-{number:03}"},
        )
        answer.raise_for_status()

    def publish_by_command(self, number: int) -> None:
        order = json.dumps({"order_id": f"A-{number:03}", "amount": 10 + number})
        arguments = ("events", "publish", TOPIC, order, "--id", f"placed-{number}", "--url", f"http://{self.address}")
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"agnt5 events publish: {done.stderr.strip()}")

    def calls(self) -> dict[str, Calls]:
        """The ledger, by order."""
        found: dict[str, Calls] = {}
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        for line in lines:
            entry = json.loads(line)
            calls = found.setdefault(entry["order_id"], Calls())
            if entry["call"] == "charge":
                calls.charge_keys.add(entry["idempotency_key"])
                calls.charge_pids.append(entry["pid"])
                calls.charged_at.append(entry["at"])
            else:
                calls.confirm_keys.add(entry["idempotency_key"])
                calls.confirm_pids.append(entry["pid"])
        return found

    def charge_recorded_at(self, run_id: object) -> float:
        """When the journal got the result of the run's charge, in seconds since the epoch."""
        history = self.http.get(f"/v1/runs/{run_id}/events").raise_for_status().json()["items"]
        (completed,) = [
            event["time"]
            for event in history
            if event["type"] == "workflow.step.completed" and event["name"] == "charge_customer"
        ]
        return datetime.fromisoformat(completed).timestamp()

    def runs(self) -> Iterator[dict[str, object]]:
        """Every run the engine knows of."""
        cursor: str | None = None
        while True:
            answer = self.http.get("/v1/runs", params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
            page = answer.raise_for_status().json()
            yield from page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return


def in_the_middle(processor: Processor) -> tuple[int, int]:
    """How many orders are inside their charge, and how many past it but not confirmed."""
    open_orders = [calls for calls in processor.calls().values() if not calls.confirm_pids]
    now = time.time()
    inside = sum(now - calls.charged_at[-1] < STEP_SECONDS * 0.8 for calls in open_orders)
    return inside, sum(now - calls.charged_at[-1] > STEP_SECONDS * 1.2 for calls in open_orders)


def wait_for_the_middle(processor: Processor) -> tuple[int, int]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        inside, between = in_the_middle(processor)
        if inside >= 2 and between >= 2:
            return inside, between
        time.sleep(0.01)
    raise DemoFailed("no order was seen in the middle of its steps")


def play(processor: Processor, orders: int, kills: int) -> list[dict[str, object]]:
    """Place the orders, kill and restart; returns the runs, all ended."""
    took = processor.start()
    console.print(f"[bold]agnt5 processor[/] examples/orders.py on the embedded engine, ready after {took:.1f} s")
    share = orders // (kills + 1)
    placed = 0
    for turn in range(kills + 1):
        last = orders if turn == kills else placed + share
        console.print(f"placing orders {placed + 1} to {last} on the topic {TOPIC}")
        if turn == 0:
            placed += 1
            processor.publish_by_command(placed)
        # The kill comes while orders still pour in, so that it finds them at every stage.
        soon = placed + max(1, (last - placed) * 3 // 4)
        while placed < (last if turn == kills else soon):
            placed += 1
            processor.publish(placed)
            time.sleep(PACE)
        if turn < kills:
            inside, between = wait_for_the_middle(processor)
            processor.kill()
            console.print(
                f"[bold red]kill -9[/] with {inside} orders inside their charge, {between} past it, unconfirmed"
            )
            console.print(f"started again, ready after {processor.start():.1f} s")
            while placed < last:
                placed += 1
                processor.publish(placed)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        runs = list(processor.runs())
        if len(runs) >= orders and all(run["finished_at"] for run in runs):
            return runs
        time.sleep(0.1)
    raise DemoFailed(
        f"after {PATIENCE:.0f} s, {sum(bool(run['finished_at']) for run in runs)} of {orders} orders ended"
    )


def order_of(run: dict[str, object]) -> str:
    placed = run["input"]
    assert isinstance(placed, dict)
    return str(placed["order_id"])


def faults(processor: Processor, calls: dict[str, Calls], runs: list[dict[str, object]], orders: int) -> list[str]:
    """What must hold and does not."""
    found: list[str] = []
    expected = {f"A-{number:03}" for number in range(1, orders + 1)}
    if set(calls) != expected:
        found.append(f"orders without any charge: {sorted(expected - set(calls))}")
    for order, done in sorted(calls.items()):
        if len(done.charge_keys) != 1:
            found.append(f"{order} was charged {len(done.charge_keys)} times")
        if len(done.confirm_keys) != 1:
            found.append(f"{order} was confirmed {len(done.confirm_keys)} times")
    if len(runs) != orders:
        found.append(f"{len(runs)} runs for {orders} orders")
    statuses = Counter(str(run["status"]) for run in runs)
    if set(statuses) != {"completed"}:
        found.append(f"runs by status: {dict(statuses)}")
    if found:
        return found
    for run in runs:
        order = order_of(run)
        if max(calls[order].charged_at) > processor.charge_recorded_at(run["run_id"]):
            found.append(f"the charge of {order} was called again after its result was in the journal")
    return found


def show(calls: dict[str, Calls], runs: list[dict[str, object]]) -> None:
    completed = {order_of(run) for run in runs if run["status"] == "completed"}
    each = Table(title="Every order", title_justify="left", box=None, padding=(0, 1, 0, 0))
    columns = 3
    for _ in range(columns):
        each.add_column("order")
        each.add_column("charged", justify="right")
        each.add_column("calls", justify="right", style="dim")
        each.add_column("done ")
    orders = sorted(calls.items())
    height = -(-len(orders) // columns)
    for row in range(height):
        cells: list[str] = []
        for order, done in orders[row::height]:
            charged = len(done.charge_keys)
            confirmed = order in completed and len(done.confirm_keys) == 1
            cells += [
                order,
                f"[{'green' if charged == 1 else 'red'}]{charged}[/]",
                str(len(done.charge_pids)),
                "[green]yes[/]" if confirmed else "[red]no[/]",
            ]
        each.add_row(*cells)
    console.print(each)

    total = Table(title="All of them", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    fates: dict[str, list[Calls]] = {}
    for done in calls.values():
        fates.setdefault(done.fate, []).append(done)
    everything = list(calls.values())
    for name, footer, justify in (
        ("what the kill did", "all", "left"),
        ("orders", str(len(calls)), "right"),
        ("charged", str(sum(len(c.charge_keys) for c in everything)), "right"),
        ("calls to charge", str(sum(len(c.charge_pids) for c in everything)), "right"),
        ("confirmed", str(sum(len(c.confirm_keys) for c in everything)), "right"),
    ):
        total.add_column(name, footer=footer, justify=justify)  # type: ignore[arg-type]
    for fate, group in sorted(fates.items(), key=lambda item: -len(item[1])):
        total.add_row(
            fate,
            str(len(group)),
            str(sum(len(c.charge_keys) for c in group)),
            str(sum(len(c.charge_pids) for c in group)),
            str(sum(len(c.confirm_keys) for c in group)),
        )
    console.print(total)
    console.print(
        "'charged' counts the idempotency keys that the payment provider (a file) saw; 'calls', how often it was "
        "called. An order killed inside its charge is called again with the same key: steps are at least once, and "
        "the key makes them one charge. No charge was called after the journal had its result."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--orders", type=int, default=60, help="how many (default 60)")
    parser.add_argument("--kills", type=int, default=3, help="how many times kill -9 (default 3)")
    parser.add_argument("--keep", action="store_true", help="leave the folder with log, data and ledger")
    options = parser.parse_args()
    if options.kills < 0 or options.orders < 10 * (options.kills + 1):
        parser.error("at least 10 orders for each kill and 10 more, so that each kill finds some in the middle")
    # Asked to stop, it still takes the processor with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="agnt5-demo-"))
    processor = Processor(folder)
    try:
        runs = play(processor, options.orders, options.kills)
        calls = processor.calls()
        show(calls, runs)
        wrong = faults(processor, calls, runs, options.orders)
    except (DemoFailed, httpx.HTTPError) as error:
        wrong = [str(error) or type(error).__name__]
    finally:
        processor.kill()
    if wrong:
        for fault in wrong:
            console.print(f"[bold red]failed:[/] {fault}")
        if processor.log.exists():
            sys.stderr.write("".join(processor.log.read_text(errors="replace").splitlines(keepends=True)[-40:]))
        console.print(f"The processor's log, data and ledger are in {folder}")
        return 1
    if options.keep:
        console.print(f"The processor's log, data and ledger are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(
        f"[bold green]Every order confirmed, each charged once[/], through {options.kills} times kill -9, "
        f"in {time.monotonic() - began:.0f} s."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
