"""Everything that a partition knows, in a form that can be compared."""

from __future__ import annotations

from typing import Any

from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.rows import EarlyCancelRow, PendingRow, SessionRow
from agnt5_engine.runs import table
from agnt5_engine.runs.model import Run
from agnt5_engine.runs.rows import pending_row, run_row, session_row, user_row
from agnt5_engine.runs.state import PartitionState

Snapshot = dict[str, Any]


def snapshot(state: PartitionState) -> Snapshot:
    """Everything a partition knows, whether in memory or in its table, in one comparable form."""
    found: Snapshot = {"claim": state.claim, "now": state.now}
    runs: dict[str, Run] = dict(state.runs)
    for key, _ in state.rows.scan(table.RUN):
        run_id = key[1:].decode()
        if run_id not in runs and (run := state._load(run_id)) is not None:
            runs[run_id] = run
    for run_id, run in sorted(runs.items()):
        found[f"run {run_id}"] = _frozen(run_row(run, inline=True))
        found[f"seq {run_id}"] = run.seq
        for path, p in sorted(run.pending.items()):
            found[f"pending {run_id}/{path}"] = _unclaimed(pending_row(run_id, path, p))
    for key, value in state.rows.scan(table.SESSION):
        found[f"session {key[1:].decode()}"] = _frozen(decode(value))
    for key, session in state.sessions.items():
        row = session_row(session)
        if row.base >= 0 or row.lock_run is not None or row.queue or f"session {key}" in found:
            found[f"session {key}"] = _frozen(row)
    for key, value in state.rows.scan(table.USER):
        found[f"user {key[1:].decode()}"] = _frozen(decode(value))
    for user in state.users.values():
        if user.version:
            found[f"user {user.user_id}"] = _frozen(user_row(user))
    for id, row in state.outbox.items():
        found[f"outbox {id}"] = row
    early: dict[str, EarlyCancelRow | None] = {
        key[1:].decode(): decode(value) for key, value in state.rows.scan(table.EARLY_CANCEL)
    }
    early.update(state.early_cancels)
    found.update({f"early {run_id}": row for run_id, row in early.items() if row is not None})
    found = {name: row for name, row in found.items() if not _is_empty_session(row)}
    found["paused"] = sorted(state.paused)
    return found


def _unclaimed(row: PendingRow) -> PendingRow:
    """The end of a run is written under the claim of whoever writes it, not of whoever first came to it."""
    if row.ask != "end":
        return row
    return row._replace(payload=encode(decode(row.payload)._replace(claim=0)))


def _is_empty_session(row: Any) -> bool:
    return isinstance(row, SessionRow) and row.base < 0 and row.lock_run is None and not row.queue


def _frozen(row: Any) -> Any:
    """The row with copies of what the live object goes on changing."""
    copies = {name: tuple(v) for name, v in row._asdict().items() if isinstance(v, list)}
    return row._replace(**copies, **{name: dict(v) for name, v in row._asdict().items() if isinstance(v, dict)})


def differences(one: Snapshot, other: Snapshot) -> str:
    """The first few things in which two snapshots differ."""
    told = []
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if left != right:
            if isinstance(left, tuple) and isinstance(right, tuple) and hasattr(left, "_asdict"):
                fields: list[tuple[str, Any, Any]] = list(zip(left._fields, left, right, strict=True))  # type: ignore[attr-defined]
                for field, a, b in fields:
                    if isinstance(a, tuple) and isinstance(b, tuple) and a != b:
                        at = next(
                            (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
                        )
                        told.append(f"{name}.{field}[{at}]: {a[at : at + 2]!r} / {b[at : at + 2]!r}")
                    elif a != b:
                        told.append(f"{name}.{field}: {a!r} / {b!r}")
            else:
                told.append(f"{name}: {left!r} / {right!r}")
    return "; ".join(told[:3])
