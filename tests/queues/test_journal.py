"""What the journal says of a step in a pool decides who may execute it next, through checkpoints and take-overs."""

from __future__ import annotations

from agnt5 import WorkflowContext, function, workflow
from agnt5_engine.records.journal import RetryRequested, StepBeat, StepDispatched, StepFailed
from agnt5_engine.runs.effects import Abandon, Execute, StepAlive
from agnt5_engine.runs.model import Pending
from tests.runs.bench import Partition


@function(name="queues.pooled", queue="pool")
async def pooled(n: int) -> int:
    return n


@workflow(name="queues.flow")
async def flow(ctx: WorkflowContext) -> int:
    done: int = await ctx.step(pooled, 1)
    return done


def dispatched() -> Partition:
    partition = Partition(flow)
    partition.request(flow)
    partition.apply(StepDispatched("run", "0", 0, partition.state.claim))
    return partition


def beat(state: str, attempt: int = 0) -> StepBeat:
    return StepBeat("run", "0", attempt, "w1", state)


def pending(partition: Partition) -> Pending:
    return partition.run().pending["0"]


def test_what_a_pool_has_is_still_known_to_have_been_sent_after_the_memory_is_lost() -> None:
    partition = dispatched()
    assert partition.apply(beat("working")) == [StepAlive("run", "0")]
    partition.checkpoint()
    partition.crash()

    assert pending(partition).dispatched
    assert pending(partition).beat_at is not None


def test_a_step_that_a_worker_leaves_or_may_have_died_with_is_asked_for_again() -> None:
    for state, restarts in (("left", 0), ("again", 1)):
        partition = dispatched()
        assert partition.apply(beat(state)) == [Execute("run", "0")]
        p = pending(partition)
        assert (p.dispatched, p.beat_at, p.restarts) == (False, None, restarts)


def test_beats_of_another_attempt_or_of_a_finished_step_change_nothing() -> None:
    partition = dispatched()
    assert partition.apply(beat("left", attempt=1)) == []
    partition.apply(StepFailed("run", "0", 0, "ValueError", "no", "", 1, None))
    assert not pending(partition).dispatched
    assert partition.apply(beat("left")) == []
    partition.succeed("0", 1, attempt=1)
    assert partition.apply(beat("again", attempt=1)) == []


def test_a_step_that_kills_workers_alone_parks_its_run_and_begins_anew_when_that_is_retried() -> None:
    partition = dispatched()
    for _ in range(2):
        assert StepAlive("run", "0") in partition.apply(beat("alone"))
    effects = partition.apply(beat("alone"))

    assert any(isinstance(e, Abandon) for e in effects)
    run = partition.run()
    assert (run.status, run.pause_reason) == ("paused", "poison")
    effects = partition.apply(RetryRequested("run", "c1"))
    assert Execute("run", "0") in effects
    assert (pending(partition).restarts, pending(partition).isolated) == (0, 0)


def test_a_step_that_stopping_workers_leave_while_it_runs_alone_is_not_poison() -> None:
    partition = dispatched()
    for _ in range(3):
        partition.apply(beat("alone"))
        partition.apply(beat("left"))
        partition.apply(StepDispatched("run", "0", 0, partition.state.claim))
    assert partition.run().status != "paused"

    partition.apply(beat("alone"))  # and dies
    partition.apply(StepDispatched("run", "0", 0, partition.state.claim))
    partition.apply(beat("left"))  # by one that had not begun it
    assert pending(partition).isolated == 1


def test_a_function_that_workers_do_not_have_parks_the_run_with_the_reason() -> None:
    partition = dispatched()
    partition.apply(beat("unknown"))

    run = partition.run()
    assert run.pause_reason == "unknown_function"
    assert run.pause_detail == "step 0 needs function 'queues.pooled', which worker w1 does not have"
