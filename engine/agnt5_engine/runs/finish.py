"""The end of a run, and its second life when it is retried."""

from __future__ import annotations

from agnt5.replay.protocol import ChildAsk, ErrorInfo, StepAsk
from agnt5_engine.records.rows import Held, HistoryRow
from agnt5_engine.runs import history as h
from agnt5_engine.runs.activate import advance
from agnt5_engine.runs.commit import drop_activation, moved
from agnt5_engine.runs.effects import Abandon, SetTimer
from agnt5_engine.runs.model import DEADLINE, Cause, DeadlineAsk, Pending, Run
from agnt5_engine.runs.outbox import post_child_finished, post_outcome, withdraw_child
from agnt5_engine.runs.schedules import run_ended
from agnt5_engine.runs.state import PartitionState
from agnt5_engine.runs.writes import release


def finish(
    state: PartitionState,
    run: Run,
    held: Held,
    status: str,
    output: bytes | None = None,
    error: ErrorInfo | None = None,
) -> None:
    """End the run: what it waited for is dropped, whoever waits for it is told."""
    drop_activation(run)
    release(state, run)
    for path in list(run.pending):
        p = state.drop_pending(run, path)
        assert p is not None
        if isinstance(p.ask, StepAsk):
            state.effects.append(Abandon(run.run_id, path, p))
        elif isinstance(p.ask, ChildAsk) and status in ("cancelled", "timeout"):
            withdraw_child(state, run, p.ask)
    run.status, run.output, run.finished_at = status, output, held.time
    run.pause_reason = run.pause_detail = None
    state.paused.discard(run.run_id)
    state.changed(run)
    run.held, run.signals = [], []
    if error is not None:
        run.error_type, run.message, run.traceback, run.step = error.type, error.message, error.traceback, error.step
    row = HistoryRow(
        run.seq, held.time, h.FINISHED, "", "", status, run.attempt, 0, output,
        error.type if error else None, error.message if error else None, error.traceback if error else None,
        error.step if error else None, None, [], [], [],
    )  # fmt: skip
    state.note(run, row, 1)
    for parent in run.parents:
        post_child_finished(state, held.offset, run, parent.run_id, parent.path)
    post_outcome(state, run)
    run_ended(state, run)
    moved(state, run)


def go_on_again(state: PartitionState, run: Run, held: Held, attempt: int, command_id: str | None = None) -> None:
    """A failed run lives again: what succeeded counts, what failed is asked once more."""
    drop_activation(run)
    for path in list(run.pending):
        p = state.drop_pending(run, path)
        if p is not None and isinstance(p.ask, StepAsk):
            state.effects.append(Abandon(run.run_id, path, p))
    run.status, run.attempt, run.finished_at, run.output = "running", attempt, None, None
    run.error_type = run.message = run.traceback = run.step = run.cancelled = None
    run.earlier = None
    state.changed(run)
    arm_deadline(state, run, held.time)
    # One that was cancelled before it began has nothing to go on from.
    advance(state, run, Cause(held, None, again=run.begun, attempt=attempt, command_id=command_id))


def unpark(state: PartitionState, run: Run, time: int) -> list[Held]:
    """Let a parked run try again. Returns the records it held back, to be applied now, in order."""
    state.paused.discard(run.run_id)
    state.changed(run)
    held, run.held = run.held, []
    run.status, run.pause_reason, run.pause_detail = "running", None, None
    row = HistoryRow(
        run.seq, time, h.RESUMED, "", "", "", run.attempt, 0, None, None, None, None, None, None, [], [], []
    )
    state.note(run, row, 1)
    moved(state, run)
    return held


def arm_deadline(state: PartitionState, run: Run, time: int) -> None:
    """Start the run's own time-out, if its workflow has one."""
    workflow = state.code.workflow(run.workflow)
    if workflow is not None and workflow.timeout_ms is not None:
        state.drop_pending(run, DEADLINE)
        due = time + workflow.timeout_ms
        run.pending[DEADLINE] = Pending(DeadlineAsk(DEADLINE, due), time)
        state.effects.append(SetTimer(due, run.run_id, DEADLINE))
