"""Orders: validated, charged once, confirmed. Started by every event on the topic `order.placed`.

    agnt5 dev examples/orders.py
    agnt5 events publish order.placed '{"order_id": "A-1", "amount": 89.99}' --id A-1
    agnt5 runs list

Kill the processor whenever you like, even inside the charge: see `ledger` for what the payment provider saw.
"""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import event

# The "payment provider": a file that every call is appended to, so that anyone can count. One JSON object per line.
LEDGER = Path(os.environ.get("ORDERS_LEDGER", "charges.jsonl"))
# How long each step takes, in seconds. The demo slows them down to kill the processor in the middle.
STEP_SECONDS = float(os.environ.get("ORDERS_STEP_SECONDS", "0"))


class Charge(BaseModel):
    charge_id: str
    amount: float


def ledger(entry: dict[str, Any]) -> None:
    """Write one line and leave it to the disk before going on, as a provider's API call would."""
    with LEDGER.open("a") as file:
        file.write(json.dumps({**entry, "pid": os.getpid(), "at": time.time()}) + "\n")
        file.flush()
        os.fsync(file.fileno())


@function
async def validate_order(order_id: str, amount: float) -> bool:
    return bool(order_id) and amount > 0


@function(retries=5)
async def charge_customer(ctx: FunctionContext, order_id: str, amount: float) -> Charge:
    # The key is the same at every attempt, by whichever processor: a provider that honours it charges once.
    key = ctx.idempotency_key
    ledger({"call": "charge", "order_id": order_id, "amount": amount, "idempotency_key": key})
    await asyncio.sleep(STEP_SECONDS)
    return Charge(charge_id=f"ch-{order_id}", amount=amount)


@function
async def send_confirmation(ctx: FunctionContext, order_id: str, charge_id: str) -> str:
    await asyncio.sleep(STEP_SECONDS)
    key = ctx.idempotency_key
    ledger({"call": "confirm", "order_id": order_id, "charge_id": charge_id, "idempotency_key": key})
    return f"Order {order_id} is confirmed."


@workflow(triggers=[event("order.placed")])
async def order_workflow(ctx: WorkflowContext, order_id: str, amount: float) -> dict[str, str]:
    if not await ctx.step(validate_order, order_id, amount):
        return {"status": "invalid", "order_id": order_id}
    charge = await ctx.step(charge_customer, order_id, amount)
    await ctx.step(send_confirmation, order_id, charge.charge_id)
    return {"status": "complete", "order_id": order_id, "charge_id": charge.charge_id}
