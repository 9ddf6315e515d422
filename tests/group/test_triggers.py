"""Where a group begins to read a trigger's topic: decided once, for all of the topic, whoever comes when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import NewPartitions

from agnt5.types import event
from agnt5.workflow import workflow
from tests.engine.processes import statuses
from tests.group.inside import joined, runs, settings_for, until
from tests.group.world import create, opened, produce
from tests.group.world import group_of as group_of_processes
from tests.group.world import until as wait_until
from tests.kafka.administrator import administrator


def _listen(name: str, topic: str) -> Any:
    @workflow(name=name, triggers=[event(topic)])
    async def listens(ctx: Any, order: int) -> int:
        return order

    return listens


async def _orders(processor: Any, name: str) -> list[int]:
    return sorted(run.input["order"] for run in await runs(processor, name) if run.status == "completed")


async def _until_orders(processors: list[Any], name: str, wanted: list[int]) -> None:
    found: list[int] = []
    for _ in range(600):
        found = sorted([order for p in processors for order in await _orders(p, name)])
        if found == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found[:20]} ... ({len(found)}), not {len(wanted)} orders")


async def test_a_topic_that_appears_later_is_picked_up_from_its_first_event(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, trigger_start="latest")
    topic = f"{settings.group}.later"
    _listen("later", topic)
    async with joined(settings) as processor:
        await create(kafka, topic, 2)
        await produce(kafka, topic, 0, 20)
        await _until_orders([processor], "later", list(range(20)))


async def test_two_processors_that_start_at_once_both_begin_at_the_latest(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, trigger_start="latest", partitions=4)
    topic = f"{settings.group}.old"
    await create(kafka, topic, 4)
    await produce(kafka, topic, 0, 40)
    _listen("old", topic)
    async with joined(settings, wait=False) as one, joined(settings, wait=False) as two:
        both = [one, two]
        await until(lambda: sum(len(p.owned()) for p in both) == 4 and all(p.owned() for p in both))
        await until(lambda: len(set().union(*(p.ingest._placed for p in both))) == 4)
        async with opened(kafka) as log:
            for partition in range(4):
                source = next(s for p in both for s in p.ingest._placed if s.partition == partition)
                while await log.committed(settings.group, source) is None:
                    await asyncio.sleep(0.05)
        await produce(kafka, topic, 100, 40)
        await _until_orders(both, "old", list(range(100, 140)))


async def test_partitions_added_to_a_topic_are_read_from_their_first_event(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, trigger_start="latest")
    topic = f"{settings.group}.grows"
    await create(kafka, topic, 1)
    _listen("grows", topic)
    async with joined(settings) as processor:
        await produce(kafka, topic, 0, 5)
        await _until_orders([processor], "grows", list(range(5)))
        async with administrator(kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(3)})
        async with opened(kafka) as log:
            while (await log.topics([topic]))[topic].partitions < 3:
                await asyncio.sleep(0.05)
        await produce(kafka, topic, 5, 60)
        await _until_orders([processor], "grows", list(range(65)))


@pytest.mark.parametrize("same_partitions", [True, False], ids=["as-many", "other-number"])
async def test_a_deployment_with_a_new_trigger_has_it_at_once(
    kafka: str, tmp_path: Path, same_partitions: bool
) -> None:
    settings = settings_for(kafka, tmp_path, trigger_start="earliest", session_timeout=60)
    old, new = f"{settings.group}.old", f"{settings.group}.new"
    await create(kafka, old, 2)
    await create(kafka, new, 2 if same_partitions else 3)
    await produce(kafka, new, 0, 10)
    _listen("old", old)
    async with joined(settings, leave=False):
        pass
    _listen("new", new)
    async with joined(settings) as processor:
        await _until_orders([processor], "new", list(range(10)))
        await produce(kafka, old, 0, 10)
        await _until_orders([processor], "old", list(range(10)))


def test_during_a_rolling_deployment_nothing_of_a_new_trigger_is_lost(kafka: str, tmp_path: Path) -> None:
    with group_of_processes(kafka, tmp_path) as group:
        one = group.start("a")
        group.create()
        extra = f"{group.name}.extra"
        group.create(extra)
        more = f"\n@workflow(triggers=[event({extra!r})])\nasync def extra(ctx, order: int) -> int:\n    return order\n"
        group.module.write_text(group.module.read_text() + more)
        two = group.start("b")
        group.wait_shared(one, two)
        group.produce(0, 20)
        group.produce(0, 20, extra)
        assert group.wait_completed(one, 20) == dict.fromkeys(range(20), 1)
        wait_until(lambda: sum(_statuses(two.url, "extra").values()) == 20, two.tail)
        one.stop()  # now its turn has come
        one.start()
        wait_until(lambda: _statuses(two.url, "extra") == {"completed": 20}, lambda: (one.tail(), two.tail()))


def _statuses(url: str, name: str) -> dict[str, int]:
    try:
        return statuses(url, name)
    except httpx.HTTPError:
        return {}  # a partition has no owner just now
