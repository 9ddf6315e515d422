"""Steps that a queue's pool of workers executes: what the journal tells of them between command and result."""

from __future__ import annotations

from agnt5.replay.protocol import StepAsk
from agnt5_engine.records.journal import StepBeat, StepDispatched
from agnt5_engine.records.rows import Held
from agnt5_engine.runs.activate import park
from agnt5_engine.runs.effects import Abandon, Execute, StepAlive
from agnt5_engine.runs.model import Pending, Run
from agnt5_engine.runs.state import PartitionState

#: Workers that may have died with the step in hand, from which on it is executed alone.
ALONE_FROM = 3
#: Workers that may die while they execute it alone, before its run is parked.
_DEATHS_ALONE = 2


def step_dispatched(state: PartitionState, r: StepDispatched) -> None:
    """It is in the topic: no owner gives it to the pool again, unless the worker that has it falls silent."""
    if (found := _pending(state, r.run_id, r.path, r.attempt)) is not None:
        run, p = found
        p.dispatched, p.beat_at = True, None
        _changed(state, run, p)


def step_beat(state: PartitionState, held: Held, r: StepBeat) -> None:
    """A worker speaks of a step that it has in hand."""
    found = _pending(state, r.run_id, r.path, r.attempt)
    if found is None:
        return
    run, p = found
    begun, p.beat_at = p.beat_at is not None, held.time
    match r.state:
        case "left":
            if begun and p.isolated:
                p.isolated -= 1  # it did not die
            _ask_again(state, run, r.path, p)
        case "again":
            p.restarts += 1
            _ask_again(state, run, r.path, p)
        case "alone":
            p.isolated += 1
            if p.isolated > _DEATHS_ALONE:
                detail = f"step {r.path} ({_name(p)}) killed its worker {_DEATHS_ALONE} times while it ran alone"
                _give_up(state, run, r.path, p, "poison", detail)
        case "unknown":
            detail = f"step {r.path} needs function {_name(p)!r}, which worker {r.worker} does not have"
            _give_up(state, run, r.path, p, "unknown_function", detail)
        case _:
            pass
    if p.dispatched:
        state.effects.append(StepAlive(r.run_id, r.path))
    _changed(state, run, p)


def _ask_again(state: PartitionState, run: Run, path: str, p: Pending) -> None:
    p.dispatched, p.beat_at = False, None
    if run.status != "paused":
        state.effects.append(Execute(run.run_id, path))


def _give_up(state: PartitionState, run: Run, path: str, p: Pending, reason: str, detail: str) -> None:
    """Park the run. When it goes on, the step begins anew."""
    state.effects.append(Abandon(run.run_id, path, p))
    p.dispatched, p.beat_at, p.restarts, p.isolated = False, None, 0, 0
    if run.status != "paused":
        park(state, run, None, reason, detail)


def _pending(state: PartitionState, run_id: str, path: str, attempt: int) -> tuple[Run, Pending] | None:
    run = state.run(run_id)
    if run is None or run.ended or (p := run.pending.get(path)) is None:
        return None
    return (run, p) if isinstance(p.ask, StepAsk) and p.attempt == attempt else None


def _name(p: Pending) -> str:
    assert isinstance(p.ask, StepAsk)
    return p.ask.function or p.ask.name


def _changed(state: PartitionState, run: Run, p: Pending) -> None:
    p.saved = False
    state.changed(run)
