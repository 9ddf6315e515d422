"""Workflows and functions defined in a test are forgotten after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agnt5 import registry
from tests.replay.model import LIVE


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    before = registry.snapshot()
    yield
    registry.restore(before)
    while LIVE:
        LIVE.pop().evict()
