"""What a run resolves without a record of its own: commands to its children, and signals that came before they were
waited for.

Where its session is busy, the run stands in the session's queue for this, as a record would.
"""

from __future__ import annotations

from agnt5.replay.protocol import Resolved, SignalAsk, TellChildAsk
from agnt5_engine.records.rows import Held
from agnt5_engine.runs.activate import advance
from agnt5_engine.runs.commit import earlier_result
from agnt5_engine.runs.model import SIGNAL, Cause, DeadlineAsk, EndAsk, Run
from agnt5_engine.runs.state import PartitionState

#: In a queue, in place of a record: the run itself (its ID follows).
SETTLE = b"\0"


def settle(state: PartitionState, run: Run, held: Held) -> None:
    """Resolve what needs no record of its own: commands to children (the outbox has them), signals that came early,
    results that an earlier attempt of the run has."""
    if not run.signals and not run.tells and not run.keeps:
        return
    held = held._replace(value=SETTLE + run.run_id.encode())
    while not run.ended and not run.ending and run.status != "paused":
        session = state.sessions.get(run.key)
        if session is not None and session.busy:
            if not _nothing_to_settle(run) and not any(q.value == held.value for q in session.queue):
                # Behind the turn that is open, before what came later.
                session.queue.insert(session.turn.records if session.turn is not None else 0, held)
                state.session_changed(session)
            return
        if not _settle_one(state, run, held):
            return


def _nothing_to_settle(run: Run) -> bool:
    names = {s.name for s in run.signals}
    for p in run.pending.values():
        if p.kept or isinstance(p.ask, TellChildAsk) or (isinstance(p.ask, SignalAsk) and p.ask.name in names):
            return False
    return True


def _settle_one(state: PartitionState, run: Run, held: Held) -> bool:
    if not run.signals and not run.tells and not run.keeps:
        return False
    for path, p in run.pending.items():
        if p.kept:
            assert not isinstance(p.ask, EndAsk | DeadlineAsk)
            row = earlier_result(run, p.ask)
            assert row is not None
            event = Resolved(path, row.value or b"null")
            cause = Cause(held, event, row.kind, row.name, row.digest, row.attempt, row.by, kept=True)
            return advance(state, run, cause)
        if isinstance(p.ask, TellChildAsk):
            return advance(state, run, Cause(held, Resolved(path, b"null"), "tell", p.ask.command, p.digest))
        if isinstance(p.ask, SignalAsk):
            for signal in run.signals:
                if signal.name == p.ask.name:
                    return advance(state, run, Cause(held, Resolved(path, signal.payload), SIGNAL, p.ask.name))
    return False
