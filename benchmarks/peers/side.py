"""What a comparison asks of each side: the same runs, started in the same way, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from benchmarks.tally import Readings


class Side(Protocol):
    """One system with its processes. The worker is the process that holds the user's code."""

    name: str
    durability: str
    """What is safe when something is acknowledged."""
    readings: Readings

    def start(self) -> None:
        """Start everything, and wait until runs can be started."""
        ...

    def close(self) -> None: ...

    def roots(self) -> dict[str, int]:
        """The root process of each part, by name."""
        ...

    def kill_worker(self) -> None:
        """kill -9 for the process that holds the user's code."""
        ...

    def start_worker(self) -> None: ...

    def check(self) -> None:
        """Raises RuntimeError when one of the processes has ended by itself."""
        ...

    def url(self, workflow: str, *, wait: bool) -> str:
        """Where to POST an input: to have a run's output, or only its acceptance."""
        ...

    def output(self, answer: Any) -> Any:
        """The run's output in the answer. Raises RequestFailed."""
        ...


Input = Mapping[str, Any]
