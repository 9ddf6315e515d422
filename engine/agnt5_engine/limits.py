"""How much of a queue, or of a function, one process does at once and in a time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/|per)\s*(s|m|h)(?:ec|in|our)?")


class Limit(NamedTuple):
    """`concurrency`: executions at once; `rate`: executions begun per second. None: no limit. Both are of one process:
    a pool of three workers does three times as much."""

    concurrency: int | None = None
    rate: float | None = None


def limit_name(name: str) -> str:
    """A queue's or function's name as a variable can hold it: `gpu-large` is AGNT5_QUEUE_GPU_LARGE_..."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def parse_limit(value: Mapping[str, Any]) -> Limit:
    """A table with `concurrency` and `rate` as a Limit. Raises ValueError that says what to write."""
    if unknown := value.keys() - {"concurrency", "rate"}:
        raise ValueError(f"a limit has concurrency and rate, not {', '.join(sorted(unknown))}")
    return Limit(_concurrency(value.get("concurrency")), _rate(value.get("rate")))


def _concurrency(value: Any) -> int | None:
    if value is None:
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"concurrency {value!r} is not a whole number of executions at once, 1 or more")
    return int(text)


def _rate(value: Any) -> float | None:
    """Per second."""
    if value is None:
        return None
    match = _RATE.fullmatch(str(value).strip().lower())
    rate = value if isinstance(value, float) else float(match[1]) / _SECONDS[match[2]] if match else 0.0
    if not 0 < rate < math.inf:
        raise ValueError(f"rate {value!r} is not executions in a time; write for instance 10/s, 300/m or 1000/h")
    return rate
