"""Lists over one partition: what is in memory, over what the table holds. Newest first, or oldest question first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Set

from agnt5.replay.protocol import UserAsk
from agnt5_engine.partition.owner import Owner
from agnt5_engine.runs import table
from agnt5_engine.runs.model import Pending, Run

Position = tuple[int, str]
"""(created_at ms, run ID): the order of lists, newest first."""


def newest_first(owner: Owner, before: Position | None) -> Iterator[Run]:
    """The runs that the partition has when this begins, each once, whatever moves between table and memory meanwhile.
    When the partition closes, they end early."""
    state = owner.state
    live = [run for run in state.runs.values() if before is None or (run.created_at, run.run_id) < before]
    stored = _stored(owner, before, {run.run_id for run in live})
    merged = heapq.merge(sorted(live, key=_newest, reverse=True), stored, key=_newest, reverse=True)
    for run in merged:
        if run.finished_at is None or run.finished_at + state.retention_ms >= state.now:
            yield run


def _newest(run: Run) -> Position:
    return (run.created_at, run.run_id)


def _stored(owner: Owner, before: Position | None, live: Set[str]) -> Iterator[Run]:
    """Runs in the table that are not among the `live` ones. Within one millisecond the table has them by ascending ID:
    they are turned round."""
    state = owner.state
    after = table.created_key(before[0] + 1, b"") if before is not None else None
    same: list[Run] = []
    for key, _ in state.rows.scan(table.BY_CREATED, after):
        created_at, run_id = table.created_of(key)
        if before is not None and (created_at, run_id) >= before:
            continue
        if run_id in live:
            continue
        run = state.peek(run_id)
        if run is None:
            continue
        if same and same[-1].created_at != created_at:
            yield from reversed(same)
            same = []
        same.append(run)
    yield from reversed(same)


def questions(owner: Owner) -> Iterator[tuple[Run, str, Pending]]:
    """Every question of the partition that is open when this begins, whatever moves between table and memory
    meanwhile; one that is answered meanwhile may be among them."""
    state = owner.state
    live = list(state.runs.values())
    for run in live:
        if not run.ended:
            for path, p in list(run.pending.items()):
                if isinstance(p.ask, UserAsk):
                    yield run, path, p
    in_memory = {run.run_id for run in live}
    for key, _ in state.rows.scan(table.BY_ASKED):
        run_id, _, path = key[9:].decode().partition("\0")
        if run_id not in in_memory:
            run_ = state.peek(run_id)
            if run_ is not None and (p_ := run_.pending.get(path)) is not None:
                yield run_, path, p_
