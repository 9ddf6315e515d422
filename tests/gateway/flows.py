"""Scripts for the fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway.fake_engine import FakeRun, FakeWorkflow


async def _value(value: Any) -> Any:
    return value


async def double(run: FakeRun) -> Any:
    return await run.step("twice", lambda: _value(run.input["number"] * 2))


async def fails(run: FakeRun) -> Any:
    async def charge() -> None:
        raise ValueError("card declined")

    return await run.step("charge", charge)


async def approval(run: FakeRun) -> Any:
    decision = await run.ask(f"Approve {run.input['order_id']}?")
    return {"decision": decision}


async def two_questions(run: FakeRun) -> Any:
    return list(await asyncio.gather(run.ask("one?"), run.ask("two?", skippable=True)))


async def one_by_one(run: FakeRun) -> Any:
    return [await run.ask("one?"), await run.ask("two?")]


async def signalled(run: FakeRun) -> Any:
    first = await run.signal("go")
    run.progress(0.5)
    second = await run.signal("go")
    return [first, second]


async def two_signals(run: FakeRun) -> Any:
    return [await run.signal("order/paid"), await run.signal("order/shipped")]


async def named_signal(run: FakeRun) -> Any:
    return await run.signal(run.input["name"])


async def nothing(run: FakeRun) -> Any:
    return {"ok": True}


async def payment(run: FakeRun) -> Any:
    return run.input


def workflows() -> dict[str, FakeWorkflow]:
    return {
        "double": FakeWorkflow(double, {"number": int}),
        "fails": FakeWorkflow(fails),
        "approval_workflow": FakeWorkflow(approval, {"order_id": str}),
        "two_questions": FakeWorkflow(two_questions),
        "one_by_one": FakeWorkflow(one_by_one),
        "two_signals": FakeWorkflow(two_signals),
        "signalled": FakeWorkflow(signalled),
        "named_signal": FakeWorkflow(named_signal, {"name": str}),
        "nothing": FakeWorkflow(nothing),
        "welcome": FakeWorkflow(nothing, {"user_id": str}, topics=["user.signed_up"]),
        "payment_workflow": FakeWorkflow(
            payment, {"amount": int, "currency": str}, webhooks=[("stripe", "payment_intent.succeeded")]
        ),
        "ledger": FakeWorkflow(payment, {"amount": int}, webhooks=[("stripe", None)]),
        "on_pull_request": FakeWorkflow(payment, {"number": int}, webhooks=[("github", "pull_request.opened")]),
        "on_message": FakeWorkflow(payment, {"event": dict[str, Any]}, webhooks=[("slack", "message")]),
        "on_shop": FakeWorkflow(payment, {"data": dict[str, Any]}, webhooks=[("my-shop", "order.paid")]),
    }
