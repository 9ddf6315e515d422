"""A payment provider calls: the signature is verified, the delivery deduplicated, then a run starts.

    export AGNT5_WEBHOOK_STRIPE_SECRET=whsec_...
    agnt5 dev examples/webhook.py
    # point Stripe at http://YOUR_HOST:8080/v1/webhooks/stripe

Fields bind from the body by name; Stripe's sit in `data.object`, and are taken from there.
"""

from agnt5 import WorkflowContext, function, workflow
from agnt5.types import webhook


@function
async def record_payment(amount: int, currency: str) -> str:
    return f"{amount / 100:.2f} {currency.upper()}"


@workflow(triggers=[webhook("stripe", event="payment_intent.succeeded")])
async def payment_workflow(ctx: WorkflowContext, amount: int, currency: str) -> str:
    recorded = await ctx.step(record_payment, amount, currency)
    return f"Payment of {recorded} recorded."
