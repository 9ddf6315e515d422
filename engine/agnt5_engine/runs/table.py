"""The keyspace of a partition's table, and what the pure core needs of the store that holds it.

Primary rows go to the changelog. Rows of the derived families (upper-case letters) are made from them on every write
and on restore, so they cost the changelog nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

RUN, HISTORY, PENDING, SESSION, USER, OUTBOX, EARLY_CANCEL = b"r", b"h", b"p", b"s", b"u", b"o", b"x"
SCHEDULE = b"t"
MARKER = b"m"
PIECE = b"+"  # of a row too large for one message: `pieces`
BY_CREATED, BY_FINISHED, BY_ASKED, PAUSED, BUSY_SESSION = b"C", b"F", b"A", b"K", b"Q"
DERIVED_FAMILIES = (BY_CREATED, BY_FINISHED, BY_ASKED, PAUSED, BUSY_SESSION)

_NEVER = (1 << 63) - 1


class Rows(Protocol):
    """Read access to the table as of the last checkpoint."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key starts with `prefix`, in key order; only keys greater than `after` when that is given."""
        ...


def run_key(run_id: str) -> bytes:
    return RUN + run_id.encode()


def history_key(run_id: str, index: int) -> bytes:
    return HISTORY + run_id.encode() + b"\0" + index.to_bytes(4, "big")


def history_prefix(run_id: str) -> bytes:
    return HISTORY + run_id.encode() + b"\0"


def pending_key(run_id: str, path: str) -> bytes:
    return PENDING + run_id.encode() + b"\0" + path.encode()


def pending_prefix(run_id: str) -> bytes:
    return PENDING + run_id.encode() + b"\0"


def session_row_key(key: str) -> bytes:
    return SESSION + key.encode()


def user_row_key(user_id: str) -> bytes:
    return USER + user_id.encode()


def outbox_key(outbox_id: str) -> bytes:
    return OUTBOX + outbox_id.encode()


def early_cancel_key(run_id: str) -> bytes:
    return EARLY_CANCEL + run_id.encode()


def schedule_key(key: str) -> bytes:
    return SCHEDULE + key.encode()


def created_key(created_at: int, run_id: bytes) -> bytes:
    """Newest first."""
    return BY_CREATED + (_NEVER - created_at).to_bytes(8, "big") + run_id


def created_of(key: bytes) -> tuple[int, str]:
    return _NEVER - int.from_bytes(key[1:9], "big"), key[9:].decode()


def finished_key(finished_at: int, run_id: bytes) -> bytes:
    """Oldest first: the order in which finished runs are forgotten."""
    return BY_FINISHED + finished_at.to_bytes(8, "big") + run_id


def finished_of(key: bytes) -> tuple[int, str]:
    return int.from_bytes(key[1:9], "big"), key[9:].decode()


def asked_key(asked_at: int, entry: bytes) -> bytes:
    """Open questions, oldest first. `entry`: run ID, zero byte, path."""
    return BY_ASKED + asked_at.to_bytes(8, "big") + entry
