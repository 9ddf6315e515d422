from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agnt5 import registry

SEED_PAGE = Path(__file__).parents[2] / ".." / "shared" / "seed-workflows.md"
collect_ignore = [] if SEED_PAGE.is_file() else ["test_seed_page.py"]


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    before = registry.snapshot()
    registry.clear()
    yield
    registry.restore(before)
