from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runs import storage


@pytest.fixture(autouse=True)
def _runs_leave_memory() -> Iterator[None]:
    """As a processor does it: a run that is dropped half way must not run its clean-up."""
    yield
    storage.evict_all()
