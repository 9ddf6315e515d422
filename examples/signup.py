"""A new user: welcomed at once, reminded a day later unless they came back.

Sleeping costs nothing and survives restarts. Try it:

    agnt5 dev examples/signup.py
    agnt5 events publish user.signed_up '{"user_id": "u-1", "email": "ada@example.org"}'
    agnt5 runs signal RUN_ID came_back null       # or wait a day
"""

from datetime import timedelta

from agnt5 import WorkflowContext, function, workflow
from agnt5.types import event


@function
async def send_mail(email: str, template: str) -> str:
    return f"{template} sent to {email}"


# A session per user: its state outlives each run.
@workflow(triggers=[event("user.signed_up", session="user_id")])
async def signup_workflow(ctx: WorkflowContext, user_id: str, email: str) -> dict[str, object]:
    times = await ctx.session.state.get("sign_ups", 0)
    await ctx.session.state.set("sign_ups", times + 1)
    await ctx.step(send_mail, email, "welcome")
    try:
        await ctx.wait_for_signal("came_back", timeout=timedelta(days=1))
    except TimeoutError:
        await ctx.step(send_mail, email, "reminder")
        return {"user_id": user_id, "reminded": True, "sign_ups": times + 1}
    return {"user_id": user_id, "reminded": False, "sign_ups": times + 1}
