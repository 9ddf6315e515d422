"""A first workflow. `agnt5 dev app.py` runs it and reloads when you edit; the README beside this file says more."""

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import event


@function(retries=5)
async def greet(ctx: FunctionContext, name: str) -> str:
    # Runs at least once. What it returns is written down, and it is not run again after that.
    return f"Hello, {name}!"


@workflow(triggers=[event("user.signed_up")])
async def welcome(ctx: WorkflowContext, name: str) -> str:
    greeting = await ctx.step(greet, name)
    await ctx.sleep(1)
    return f"{greeting} Good to have you here."
