"""What a topic refuses stays in the outbox, and holds nothing else back."""

from __future__ import annotations

import asyncio

import pytest

from agnt5 import WorkflowContext, workflow
from agnt5_engine.transport.base import TopicSpec
from tests.engine.conftest import Engine


@workflow
async def publishes(ctx: WorkflowContext, size: int, key: str | None) -> str:
    await ctx.emit("orders.placed", "x" * size, key=key)
    return "published"


REFUSED = [
    (TopicSpec("orders.placed", 1, "delete", 3_600_000, 20_000), b'{"size": 50000, "key": "k"}'),
    (TopicSpec("orders.placed", 1, "compact", 3_600_000, 20_000), b'{"size": 1, "key": null}'),
]


@pytest.mark.parametrize(("topic", "refused"), REFUSED, ids=["too large", "no key in a compacted topic"])
async def test_an_event_that_its_topic_refuses_holds_no_other_event_back(
    engine: Engine, topic: TopicSpec, refused: bytes
) -> None:
    await engine.processor.log.create([topic], 1)
    first = await engine.submit("publishes", refused, session_id="s")
    others = [await engine.submit("publishes", b'{"size": 1, "key": "k"}', session_id="s") for _ in range(20)]
    async with asyncio.timeout(10):
        assert {(await engine.processor.finished(run_id)).output for run_id in others} == {"published"}
    await engine.restart()
    assert (await engine.run("publishes", b'{"size": 1, "key": "k"}', session_id="s")).output == "published"
    assert (await engine.processor.run(first)).status == "running"
    owner = engine.processor.local.owner(first)
    assert [row.run_id for row in owner.state.outbox.values() if row.topic == topic.name] == [first]
