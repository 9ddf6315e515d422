"""The broker that a measurement has to itself: `Broker` of scripts/kafka, or one that is given."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

ROOT = Path(__file__).parent.parent
FLUSH_EACH = {"log.flush.interval.messages": "1"}
"""Broker settings with which every batch is synced to the disk before it is acknowledged."""


def _script() -> Any:
    loader = SourceFileLoader("kafka_script", str(ROOT / "scripts" / "kafka"))
    spec = spec_from_loader("kafka_script", loader)
    assert spec is not None
    module = module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no cache beside the script
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


_SCRIPT = _script()


class Kafka:
    """A started broker. `pid` is None when it was given by KAFKA_BOOTSTRAP_SERVERS: then its CPU, and the bytes in its
    log, are not known."""

    def __init__(self, folder: Path, *, flush_each: bool) -> None:
        self._broker: Any = None
        self._folder = folder
        given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        if given and not flush_each:
            self.bootstrap = given
        else:
            self._broker = _SCRIPT.Broker(folder, settings=FLUSH_EACH if flush_each else None)
            self.bootstrap = self._broker.start(tied=True)
        self.pid: int | None = self._broker.pid if self._broker is not None else None

    def log_bytes(self, topic: str) -> int | None:
        """Bytes that a topic holds on the broker's disk."""
        if self._broker is None:
            return None
        files = (self._folder / "data").glob(f"{topic}-*/*.log")
        return sum(file.stat().st_size for file in files)

    def close(self) -> None:
        if self._broker is not None:
            self._broker.kill()
            self._broker.wipe()


def missing() -> str | None:
    """What keeps a broker from running here, or None."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return None
    reason: str | None = _SCRIPT.missing()
    return reason


@contextlib.asynccontextmanager
async def administering(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client that makes, lists and deletes topics."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()
