"""Activations that a test left are evicted after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.replay.model import LIVE


@pytest.fixture(autouse=True)
def no_activation_left() -> Iterator[None]:
    yield
    while LIVE:
        LIVE.pop().evict()
