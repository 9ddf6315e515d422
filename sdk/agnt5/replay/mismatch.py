"""How code and history are told apart: every NonDeterminismError names both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from agnt5.errors import NonDeterminismError
from agnt5.replay.entries import Open, described_entry, described_site
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import EntryKey, PastEvent, ask_key

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

_REMEDY = (
    'Deploy code that fits, or guard the change with `if ctx.patched("name"):` so that runs from before it keep '
    "their old way."
)


def _error(activation: Activation, recorded: str, code: str) -> NonDeterminismError:
    info = activation.info
    return NonDeterminismError(
        f"run {info.run_id} of workflow {info.workflow!r} does not fit today's code. History: {recorded}. "
        f"Code: {code}. {_REMEDY}"
    )


def _key(key: EntryKey) -> str:
    return f"{described_entry(key.kind, key.name)} at {key.path}"


def _entry(entry: Open) -> str:
    where = f" ({described_site(entry.site)})" if isinstance(entry, Pending) and entry.site is not None else ""
    return _key(ask_key(entry.ask)) + where


def _all(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _waiting(activation: Activation) -> str:
    if activation.ended:
        return "has ended"
    if not activation.open:
        return "waits for nothing"
    return "waits for " + _all(_entry(entry) for entry in activation.open.values())


def unexpected_event(activation: Activation, path: str, past: PastEvent | None) -> NonDeterminismError:
    """An event for an entry that the code does not wait for, or waits for as something else."""
    recorded = _key(EntryKey(path, past.kind, past.name)) if past is not None else f"a result at {path}"
    entry = activation.open.get(path)
    return _error(
        activation, f"{recorded} ended", f"asks {_entry(entry)}" if entry is not None else _waiting(activation)
    )


def different_pending(activation: Activation, pending: Mapping[str, EntryKey]) -> NonDeterminismError:
    """After the last event the code waits for other things than the run does."""
    asked = {path: ask_key(entry.ask) for path, entry in activation.open.items()}
    recorded = [_key(key) for path, key in pending.items() if asked.get(path) != key]
    code = [_entry(activation.open[path]) for path, key in asked.items() if pending.get(path) != key]
    return _error(
        activation,
        f"waits for {_all(recorded)}" if recorded else "waits for no such thing",
        f"asks {_all(code)}" if code else ("has ended" if activation.ended else "does not ask for it"),
    )


def unread(activation: Activation, path: str) -> NonDeterminismError:
    """The code reads the session where the history has no read."""
    return _error(activation, f"no session read at {path}", f"reads the session's state at {path}")


def not_read_again(activation: Activation, paths: Iterable[str]) -> NonDeterminismError:
    """The history has session reads that the code does not do."""
    listed = _all(paths)
    return _error(activation, f"a session read at {listed}", f"reads nothing there and {_waiting(activation)}")


def ended_early(activation: Activation, past: PastEvent, path: str) -> NonDeterminismError:
    """The code has returned or raised while the history goes on."""
    recorded = _key(EntryKey(path, past.kind, past.name)) + " ended" if path else "the run was asked to stop"
    return _error(activation, f"{recorded} after that", "has ended")
