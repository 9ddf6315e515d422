"""A workflow with a schedule, for a processor that is killed."""

from __future__ import annotations

from typing import Any

from agnt5.function import function
from agnt5.types import EveryTrigger
from agnt5.workflow import workflow


@function
async def note(when: str) -> str:
    return when


@workflow(triggers=[EveryTrigger(250, catch_up="all", overlap="queue")])
async def tick(ctx: Any, event: Any) -> str:
    when: str = await ctx.step(note, event.value["due"])
    return when
