"""What is kept as a whole, and how large it may get: the same in a processor and in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: A session's state may have so many times AGNT5_MAX_PAYLOAD_BYTES: it stands in one row, with who waits for it.
SESSION = 2
#: Signals that a run has not taken yet may have so many times that: they stand in its row, which is written whole
#: whenever it changes.
SIGNALS = 2


def outgrown(whose: str, before: Mapping[str, bytes], after: Mapping[str, bytes], most: int) -> str | None:
    """Why a state may not become that: it is kept and read as a whole."""
    had, size = (sum(len(k) + len(v) for k, v in values.items()) for values in (before, after))
    if size <= max(most, had):
        return None
    return (
        f"the state of {whose} would have {size:,} bytes; at most {most:,} are kept "
        "(AGNT5_MAX_PAYLOAD_BYTES). Delete keys, or store it elsewhere and keep where it is"
    )


def too_many_signals(
    run_id: str, waiting: Sequence[tuple[str, bytes]], another: tuple[str, bytes], most: int
) -> str | None:
    """Why a run that has these signals waiting (name and payload each) takes no other one now."""
    if sum(len(name) + len(payload) for name, payload in (*waiting, another)) <= SIGNALS * most:
        return None
    return f"run {run_id} has {len(waiting)} signals that it has not taken yet: send it again when it has"
