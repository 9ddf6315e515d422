"""Orders on stock Faust, as its documentation has it: an agent, and a table of what was charged.

`python -m tests.group.stock_faust BOOTSTRAP NAME FOLDER CONCURRENCY COMMIT_SECONDS`. It charges as the workflow of
test_loss_modes.py does, and its table holds the notes of all orders of a customer, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import faust

bootstrap, name, folder, concurrency, commit_seconds = sys.argv[1:]
around = Path(folder).parent
log = os.open(around / "charged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

app = faust.App(
    name,
    broker=f"kafka://{bootstrap}",
    store="rocksdb://",
    datadir=folder,
    topic_partitions=1,
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
    broker_commit_interval=float(commit_seconds),
)
notes = app.Table("notes", partitions=1, default=str)


@app.agent(app.topic(f"{name}.orders"), concurrency=int(concurrency))
async def charge(orders: Any) -> None:
    async for order in orders:
        os.write(log, f"{order['order']} {os.getpid()} begun\n".encode())
        while order["held"] and (around / "held").exists():
            await asyncio.sleep(0.02)
        if order["fails"] and (around / "failing").exists():
            raise ConnectionError("the payment service is away")
        os.write(log, f"{order['order']} {os.getpid()} charged\n".encode())
        notes[order["customer"]] += order["note"]


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "worker", "--without-web", "--loglevel", "info"]
    app.main()
