from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from agnt5_engine.transport.kafka import KafkaLog
from tests.kafka.real_log import plain


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """A name that no other test uses."""
    return lambda name: f"{name}.{uuid.uuid4().hex[:10]}"


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(plain(kafka), patience=30)
    yield log
    await log.close()
