"""Where a list goes on: opaque to clients, a position in the list's order to us, so that it stays right while runs
come and go and partitions move."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from agnt5_engine.gateway.problems import ProblemError, invalid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION = TypeAdapter(tuple[Annotated[int, Field(ge=0, lt=2**62)], str])


def milliseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(milliseconds=1)


def encode_cursor(time: int, name: str) -> str:
    """The cursor of the item made at `time` (ms) and called `name`."""
    return base64.urlsafe_b64encode(_POSITION.dump_json((time, name))).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """Raises ProblemError 422 for what is not one of our cursors."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return _POSITION.validate_json(data, strict=False)
    except (binascii.Error, ValueError, ValidationError):
        raise unusable_cursor() from None


def unusable_cursor() -> ProblemError:
    """422: the list cannot go on from there."""
    return invalid([{"field": "query.cursor", "message": "is not a next_cursor of this list, or is too old"}])
