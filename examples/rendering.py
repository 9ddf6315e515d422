"""Steps for machines of their own: on Kafka, `render` runs only in workers of the queue `gpu`.

On the embedded engine (`agnt5 dev examples/rendering.py`), which is one process, they run in that.

Try it:

    agnt5 processor examples/rendering.py --broker kafka://localhost:9092
    agnt5 worker examples/rendering.py --queue gpu --broker kafka://localhost:9092
    agnt5 run render_workflow scene=harbour frames=3
"""

import asyncio

from agnt5 import FunctionContext, WorkflowContext, function, workflow


@function(queue="gpu", timeout_ms=60_000)
async def render(ctx: FunctionContext, scene: str, frame: int) -> str:
    for part in range(10):
        # A worker that stops telling is taken for dead, and the step is given to another.
        ctx.heartbeat({"part": part})
        await asyncio.sleep(0.01)
    return f"{scene}-{frame:04d}.png"


@workflow
async def render_workflow(ctx: WorkflowContext, scene: str, frames: int) -> list[str]:
    return await ctx.parallel(*(ctx.step(render, scene, frame) for frame in range(frames)))
