"""The seed page's examples of people, webhooks, sessions and sleeping, as it writes them."""

from __future__ import annotations

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import every, webhook


@function
async def prepare_order_summary(ctx: FunctionContext, order_id: str) -> str:
    return f"order {order_id}: 2 books"


@function
async def fulfil_order(ctx: FunctionContext, order_id: str) -> dict:
    return {"status": "fulfilled", "order_id": order_id}


@function
async def record_payment(ctx: FunctionContext, amount: int, currency: str) -> str:
    return f"{amount} {currency}"


@workflow
async def approval_workflow(ctx: WorkflowContext, order_id: str) -> dict:
    summary = await ctx.step(prepare_order_summary, order_id)

    decision = await ctx.wait_for_user(
        question=f"Approve this order?\n\n{summary}",
        input_type="approval",
        options=[
            {"id": "approve", "label": "Approve"},
            {"id": "reject", "label": "Reject"},
        ],
    )

    if decision == "reject":
        return {"status": "rejected"}

    return await ctx.step(fulfil_order, order_id)


@workflow(triggers=[webhook("stripe", event="payment_intent.succeeded")])
async def payment_workflow(ctx: WorkflowContext, amount: int, currency: str) -> str:
    await ctx.step(record_payment, amount, currency)
    return "Payment recorded."


@workflow
async def stateful_workflow(ctx: WorkflowContext, user_id: str) -> dict:
    await ctx.state.set("phase", "started")
    count = await ctx.session.state.get("visit_count", 0)
    await ctx.session.state.set("visit_count", count + 1)
    return {"visits": count + 1}


@workflow
async def follow_up_workflow(ctx: WorkflowContext, user_id: str) -> str:
    await ctx.sleep(0.5, name="wait_24h")
    return "Follow-up sent."


@workflow(triggers=[every(1)])
async def tick(ctx: WorkflowContext) -> str:
    return "tock"
