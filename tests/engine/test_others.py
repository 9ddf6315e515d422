"""A request is sent on to wherever its partition went."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agnt5_engine import others
from agnt5_engine.ports import NotHere
from agnt5_engine.transport.base import Member
from tests.engine.conftest import Engine

HERE, THERE = "http://127.0.0.1:1", "http://127.0.0.1:2"


async def test_once_other_partitions_are_given_to_a_processor_it_knows_where_those_went_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "PERIOD", 3600.0)
    engine = await Engine(tmp_path).start()
    try:
        processor, membership = engine.processor, engine.processor.membership
        (member,) = await membership.members()
        assert member.partitions == (0, 1)
        both = [Member(member.instance_id, HERE, (0,)), Member("another", THERE, (1,))]

        async def members() -> list[Member]:
            return both

        monkeypatch.setattr(membership, "members", members)
        journals = {p: owner.place.journal for p, owner in processor._owners.items()}
        await processor.revoked(frozenset({journals[1]}))
        await processor.assigned(frozenset({journals[0]}))
        async with asyncio.timeout(10):
            while _way(engine, 1) != THERE:
                await asyncio.sleep(0.01)
        assert [shape.id for shape in await processor.processors()] == [member.instance_id, "another"]
    finally:
        await engine.stop()


def _way(engine: Engine, partition: int) -> str | None:
    try:
        engine.processor._owner_of(partition)
    except NotHere as error:
        return error.url
    return HERE
