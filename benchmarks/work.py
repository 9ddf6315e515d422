"""What a work is: an id, what it asks, where it applies, and how one repeat of it is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.figures import Finding
from benchmarks.stage import Stage


@dataclass(frozen=True, slots=True)
class Work:
    id: str
    title: str
    measure: Callable[[Stage], Awaitable[list[Finding]]]
    transports: tuple[str, ...] = ("kafka", "embedded")
