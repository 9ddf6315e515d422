"""Durations and sizes as people write them: "7d", "1h30m", "500ms", "1MiB"."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d|w)\s*)+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_duration(value: Any) -> float:
    """A duration in seconds. Takes a number (seconds), a timedelta, or text such as "7d", "1h30m", "500ms", "2.5".

    Raises ValueError, which says what to write instead.
    """
    seconds: float | None = None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip().lower()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif _DURATION.fullmatch(text):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(
            f"{value!r} is not a duration; write seconds, or a number with ms, s, m, h, d or w, as in '7d'"
        )
    return seconds


def parse_size(value: Any) -> int:
    """A size in bytes. Takes a number (bytes) or text such as "1MiB", "512 KiB", "10MB" (10**7), "2m" (2 MiB).

    Raises ValueError, which says what to write instead.
    """
    size: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        size = float(value)
    elif isinstance(value, str):
        match = _SIZE.fullmatch(value.strip().lower())
        if match and match[2] in _BYTES:
            size = float(match[1]) * _BYTES[match[2]]
    if size is None or not math.isfinite(size) or size < 0 or size != int(size):
        raise ValueError(f"{value!r} is not a size; write bytes, or a number with KiB, MiB or GiB, as in '1MiB'")
    return int(size)


Seconds = Annotated[float, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_size)]
