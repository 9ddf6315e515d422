from __future__ import annotations

from collections.abc import Iterator

import pytest

from agnt5 import registry


@pytest.fixture(autouse=True)
def empty_registry() -> Iterator[None]:
    """Each test defines its own workflows."""
    before = registry.snapshot()
    registry.clear()
    yield
    registry.restore(before)
