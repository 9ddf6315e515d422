"""Percentiles of one repeat, and medians over repeats."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

Figures = dict[str, float]
"""Measured numbers by name; the name ends in the unit (`steps_per_s`, `p50_ms`, `cpu_us_per_step`)."""


class Finding(NamedTuple):
    """What one repeat found in one case of a work."""

    case: str
    figures: Figures


class Summary(NamedTuple):
    """One figure over the repeats of a case."""

    median: float
    least: float
    most: float
    repeats: int


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed. Raises ValueError when there are none."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def milliseconds(values: Sequence[float], prefix: str = "") -> Figures:
    """p50 and p99 of durations given in seconds."""
    return {f"{prefix}p50_ms": percentile(values, 0.5) * 1e3, f"{prefix}p99_ms": percentile(values, 0.99) * 1e3}


def summary(values: Sequence[float]) -> Summary:
    return Summary(statistics.median(values), min(values), max(values), len(values))
