"""What a work is: an id, what it asks, how one repeat of it is done (it yields what it finds as it goes), and where it
applies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from benchmarks.figures import Finding
from benchmarks.stage import Stage


@dataclass(frozen=True, slots=True)
class Work:
    id: str
    title: str
    measure: Callable[[Stage], AsyncIterator[Finding]]
    transports: tuple[str, ...] = ("kafka", "embedded")
