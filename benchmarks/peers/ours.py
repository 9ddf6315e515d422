"""Our side of a comparison: a processor on a broker, or on the embedded log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import uvloop

from benchmarks.durability import SIDES
from benchmarks.kafka import Kafka
from benchmarks.load import RequestFailed
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage


class Ours:
    """`kind`: "kafka", "kafka, flush=1" or "embedded". `broker`: one of that kind, which is left running."""

    def __init__(self, kind: str, sizes: Sizes, folder: Path, broker: Kafka | None) -> None:
        self.name = f"ours on {kind}"
        self._broker = broker
        self.durability = SIDES[kind]
        self._sizes = sizes
        self._folder = folder
        self._stage: Stage | None = None

    def start(self) -> None:
        self._stage = Stage(self._sizes, self._broker, self._folder)
        self.readings = self._stage.readings
        self._processor = self._stage.processor()
        self._processor.start(self._stage.partitions)

    def close(self) -> None:
        if self._stage is not None:
            uvloop.run(self._stage.close())

    def roots(self) -> dict[str, int]:
        found = {"worker": self._processor.pid}
        if self._broker is not None and self._broker.pid is not None:
            found["server"] = self._broker.pid
        return found

    def kill_worker(self) -> None:
        self._processor.kill()

    def start_worker(self) -> None:
        assert self._stage is not None
        self._processor.start(self._stage.partitions)

    def check(self) -> None:
        self._processor.check()

    def url(self, workflow: str, *, wait: bool) -> str:
        return f"{self._processor.url}/v1/workflows/{workflow}/{'run' if wait else 'submit'}"

    def output(self, answer: Any) -> Any:
        if answer.get("status") != "completed":
            raise RequestFailed(f"a run ended as {answer}")
        return answer["output"]
