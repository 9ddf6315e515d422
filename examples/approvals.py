"""A person decides: refunds above a limit wait for an answer, for as long as a day.

Try it:

    agnt5 dev examples/approvals.py
    agnt5 run refund_workflow order_id=A-1 amount=250
    agnt5 approvals list
    agnt5 approvals answer RUN_ID approve
"""

from agnt5 import FunctionContext, WorkflowContext, function, workflow

LIMIT = 100.0
DAY = 24 * 60 * 60


@function
async def pay_back(ctx: FunctionContext, order_id: str, amount: float) -> str:
    # Here your payment provider is called, and given the key: it is the same at every attempt.
    ctx.logger.info("paying back %.2f under %s", amount, ctx.idempotency_key)
    return f"refund-{order_id}"


@workflow
async def refund_workflow(ctx: WorkflowContext, order_id: str, amount: float) -> dict[str, str]:
    if amount > LIMIT:
        try:
            decision = await ctx.wait_for_user(
                f"Refund {amount:.2f} for order {order_id}?",
                input_type="approval",
                timeout=DAY,
            )
        except TimeoutError:
            return {"status": "expired", "order_id": order_id}
        if decision == "reject":
            return {"status": "rejected", "order_id": order_id}
    refund_id = await ctx.step(pay_back, order_id, amount)
    return {"status": "refunded", "order_id": order_id, "refund_id": refund_id}
