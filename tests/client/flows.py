"""What the client tests start: the same behaviour as `gateway/flows.py` gives the fake engine, on the real SDK."""

from __future__ import annotations

from typing import Any

from agnt5 import FunctionContext, RetryPolicy, WorkflowContext, function, workflow
from agnt5.types import event


@function
async def twice(ctx: FunctionContext, number: int) -> int:
    return number * 2


@function(retries=RetryPolicy(max_attempts=1))
async def charge(ctx: FunctionContext) -> None:
    raise ValueError("card declined")


@workflow
async def double(ctx: WorkflowContext, number: int) -> int:
    return await ctx.step(twice, number)


@workflow
async def fails(ctx: WorkflowContext) -> None:
    await ctx.step(charge)


@workflow
async def approval_workflow(ctx: WorkflowContext, order_id: str) -> dict[str, Any]:
    decision = await ctx.wait_for_user(f"Approve {order_id}?", input_type="approval")
    return {"decision": decision}


@workflow
async def one_by_one(ctx: WorkflowContext) -> list[Any]:
    return [await ctx.wait_for_user(question, input_type="approval") for question in ("one?", "two?")]


@workflow
async def signalled(ctx: WorkflowContext) -> list[Any]:
    return [await ctx.wait_for_signal("go"), await ctx.wait_for_signal("go")]


@workflow
async def named_signal(ctx: WorkflowContext, name: str) -> Any:
    return await ctx.wait_for_signal(name)


@workflow
async def nothing(ctx: WorkflowContext) -> dict[str, bool]:
    return {"ok": True}


@workflow(triggers=[event("user.signed_up")])
async def welcome(ctx: WorkflowContext, user_id: str) -> dict[str, bool]:
    return {"ok": True}
