"""What is pending, asked (again): the effects that follow from rows alone, after recovery and when a parked run goes
on."""

from __future__ import annotations

from collections.abc import Iterator

from agnt5.replay.protocol import StepAsk, WriteAsk
from agnt5_engine.records.avro import decode
from agnt5_engine.records.journal import StepRestarted
from agnt5_engine.records.routing import routing_key
from agnt5_engine.runs import table
from agnt5_engine.runs.effects import Append, Execute, Send, SetTimer
from agnt5_engine.runs.model import EndAsk, Pending, Run
from agnt5_engine.runs.rows import pending_of
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.runs.writes import state_written


def ask_pending(state: PartitionState, run: Run, *, unclean: bool = False) -> None:
    """Ask for everything the run waits for that somebody here has to do."""
    if run.status == "paused" or run.ended:
        return
    for path, p in run.pending.items():
        _ask(state, run.run_id, path, p, unclean)


def ask_everything(state: PartitionState, *, unclean: bool) -> None:
    """`asking`, in one go."""
    for _ in asking(state, unclean=unclean):
        pass


def asking(state: PartitionState, *, unclean: bool) -> Iterator[None]:
    """After recovery: ask for all that is pending in the partition, reading the rows of runs that are not in memory.

    Between two rows others may have a turn: what they change is asked for by themselves, and asking for it as it
    stood in the rows does no harm. `unclean`: the owner before did not say goodbye, so any step may be what it died
    of: StepRestarted is written before one is executed again."""
    state.live_from = state.applied
    for id in state.outbox:
        state.effects.append(Send(id))
    in_memory = set(state.runs)
    for run in list(state.runs.values()):
        ask_pending(state, run, unclean=unclean)
        yield
    for _, value in state.rows.scan(table.PENDING):
        row = decode(value)
        if row.run_id not in in_memory and row.run_id not in state.paused:
            _ask(state, row.run_id, row.path, pending_of(row), unclean)
        yield


def _ask(state: PartitionState, run_id: str, path: str, p: Pending, unclean: bool) -> None:
    if p.kept:
        return
    match p.ask:
        case StepAsk() if unclean and not p.dispatched and (p.retry_at is None or p.retry_at <= state.now):
            state.effects.append(Append(run_id, StepRestarted(run_id, path, state.claim)))
        case StepAsk():
            state.effects.append(Execute(run_id, path))
        case WriteAsk():
            # The run itself is not looked up: its other rows are still to be asked for.
            session = state.session(routing_key(run_id))
            if session.lock == (run_id, path):
                state.effects.append(Append(run_id, state_written(state, session, run_id, p.ask)))
        case EndAsk(record=record):
            state.effects.append(Append(run_id, record._replace(claim=state.claim)))
        case _:
            if p.due is not None:
                state.effects.append(SetTimer(p.due, run_id, path))
