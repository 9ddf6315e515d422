from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agnt5_engine.transport.base import Log
from agnt5_engine.transport.embedded.log import EmbeddedLog
from tests.transport.clusters import Brokers, Cluster, Directory


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Cluster:
    if request.param == "kafka":
        return Brokers(request.getfixturevalue("kafka"))
    return Directory(tmp_path / "Data Of Ours")


@pytest.fixture
async def log(cluster: Cluster) -> AsyncIterator[Log]:
    log = cluster.open()
    yield log
    await log.close()


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    log = Directory(tmp_path / "data").open()
    assert isinstance(log, EmbeddedLog)
    yield log
    await log.close()


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """A name that no other test uses."""
    return lambda name: f"{name}.{uuid.uuid4().hex[:10]}"
