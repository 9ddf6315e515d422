"""The code that runs under faults, and what comes out of its processors besides runs."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path

CUSTOMERS = 7
#: Steps per order, each executed once where nothing goes wrong; `reserve` twice for every fifth.
STEPS = 3

APP = """
import mmap, os, struct, time
from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import event

LOG = os.open(os.environ["AGNT5_TEST_LOG"], os.O_WRONLY)

if clock := os.environ.get("AGNT5_TEST_CLOCK"):
    # This process's clock is off by as many seconds as the test says.
    with open(clock, "rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    true_time, true_ns = time.time, time.time_ns
    time.time = lambda: true_time() + struct.unpack("d", offset)[0]
    time.time_ns = lambda: true_ns() + int(struct.unpack("d", offset)[0] * 1e9)

def note(ctx: FunctionContext) -> None:
    os.write(LOG, f"{ctx.name} {ctx.idempotency_key}\\n".encode())

@function
async def price(ctx: FunctionContext, order: int) -> int:
    note(ctx)
    return order * 3

@function(retries={"max_attempts": 4, "initial_interval_ms": 20})
async def reserve(ctx: FunctionContext, order: int) -> int:
    note(ctx)
    if order % 5 == 0 and ctx.attempt == 0:
        raise ConnectionError("the stock service is away")
    return order + 1

@function
def charge(ctx: FunctionContext, order: int, total: int) -> int:
    note(ctx)
    return total

@workflow(triggers=[event("TOPIC", session="customer")])
async def order(ctx: WorkflowContext, order: int, customer: str) -> dict:
    total, reserved = await ctx.parallel(ctx.step(price, order), ctx.step(reserve, order))
    place = await ctx.session.state.get("orders", 0)
    await ctx.session.state.set("orders", place + 1)
    await ctx.sleep(0.05)
    charged = await ctx.step(charge, order, total)
    return {"order": order, "charged": charged, "reserved": reserved, "place": place}
"""


class Notes:
    """What the steps did, told through a pipe: a processor whose disk is full can still write to that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)  # ours is a writer too: it never ends, whoever comes and goes
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._pipe, 1 << 16):
            self.count += data.count(b"\n")
            if b"\0" in data:
                return

    def drain(self) -> int:
        """Read what is left, when nobody writes any more. Returns how many notes there were in all."""
        if self._thread.is_alive():
            os.write(self._pipe, b"\0")
            self._thread.join()
        return self.count

    def close(self) -> None:
        self.drain()
        os.close(self._pipe)


class Clock:
    """How far off a processor's clock is, in seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(struct.pack("d", 0.0))
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)

    def step(self, seconds: float) -> None:
        self._offset[:] = struct.pack("d", seconds)
