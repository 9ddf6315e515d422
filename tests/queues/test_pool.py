"""A worker's commands: each result once, offsets safe to commit, and nothing lost or doubled when it goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_core import to_json

from agnt5 import registry
from agnt5.function import function
from agnt5.functioncontext import FunctionContext
from agnt5_engine.limits import Limit
from agnt5_engine.partition.gates import Gates
from agnt5_engine.partition.steps import Slots
from agnt5_engine.queues.pool import Pool
from agnt5_engine.queues.positions import Positions
from agnt5_engine.records.journal import StepBeat, StepCommand, StepFailed, StepSucceeded, StepWithdrawn
from tests.triggers.engine import until


class Journal:
    """Stands for `Results`: what was appended; durable at once, or when the test says so."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.held: list[Callable[[], None]] | None = None

    def now(self) -> int:
        return int(time.time() * 1000)

    def append(self, record: Any, then: Callable[[], None] | None = None) -> None:
        self.records.append(record)
        if then is not None:
            if self.held is None:
                asyncio.get_running_loop().call_soon(then)
            else:
                self.held.append(then)

    async def flushed(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    def beats(self) -> list[tuple[str, str]]:
        return [(beat.run_id, beat.state) for beat in self.of(StepBeat)]


@pytest.fixture
async def journal() -> Journal:
    return Journal()


@pytest.fixture
async def pool(journal: Journal) -> AsyncIterator[Pool]:
    made = new_pool(journal)
    yield made
    await made.close(0)
    made.slots.close()


def new_pool(
    journal: Journal, concurrency: int = 100, limits: dict[str, Limit] | None = None, beat: float = 60
) -> Pool:
    return Pool(
        journal,  # type: ignore[arg-type]
        Slots(concurrency, 2), Gates({}.get, (limits or {}).get), queue="q", worker="w1",
        function=registry.find_function, beat_seconds=beat, max_payload=1000,
    )  # fmt: skip


def command(run_id: str, fn: str = "work", attempt: int = 0, run_attempt: int = 0, **more: Any) -> StepCommand:
    given = {
        "run_id": run_id, "run_attempt": run_attempt, "path": "0", "attempt": attempt, "name": fn, "function": fn,
        "input": to_json({"args": [run_id], "kwargs": {}}), "options": None, "session_id": "s", "user_id": "u",
        "workflow": "flow", "metadata": {"m": "1"}, "alone": False,
    }  # fmt: skip
    return StepCommand(**(given | more))


class Steps:
    """A function whose executions the test lets go on, one by one."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

        @function(name="work", retries=2)
        async def work(ctx: FunctionContext, name: str) -> str:
            self.begun.append(name)
            try:
                await self.gates.setdefault(name, asyncio.Event()).wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
            return name.upper()

    def let(self, name: str) -> None:
        self.gates.setdefault(name, asyncio.Event()).set()


async def test_a_command_becomes_one_result_and_its_offset_is_safe_once_that_is_durable(
    pool: Pool, journal: Journal
) -> None:
    @function(name="work")
    async def work(ctx: FunctionContext, name: str) -> dict[str, Any]:
        return {"key": ctx.idempotency_key, "of": ctx.workflow_name, "attempt": ctx.attempt, **ctx.metadata}

    journal.held = []
    positions = Positions(5)
    pool.take(positions, 5, command("a"))
    pool.take(positions, 6, command("a"))  # sent twice
    await until(lambda: journal.records)
    pool.take(positions, 7, command("a"))  # and again, when it is done
    assert positions.done == 5
    journal.held.pop()()

    (result,) = journal.of(StepSucceeded)
    assert (result.run_id, result.attempt, result.claim) == ("a", 0, None)
    assert result.result == b'{"key":"a/0","of":"flow","attempt":0,"m":"1"}'
    assert positions.done == 8


async def test_a_later_attempt_or_a_later_life_of_the_run_is_another_command(pool: Pool, journal: Journal) -> None:
    @function(name="work", retries=2)
    async def work(name: str) -> None:
        raise ValueError("no")

    positions = Positions(0)
    pool.take(positions, 0, command("a"))
    await until(lambda: len(journal.of(StepFailed)) == 1)
    pool.take(positions, 1, command("a", attempt=1))
    await until(lambda: len(journal.of(StepFailed)) == 2)
    pool.take(positions, 2, command("a", run_attempt=1))
    await until(lambda: len(journal.of(StepFailed)) == 3)

    first, last, anew = journal.of(StepFailed)
    assert (first.error_type, first.message) == ("ValueError", "no")
    assert first.retry_at is not None
    assert last.retry_at is None
    assert anew.retry_at is not None


@pytest.mark.parametrize("in_thread", [False, True])
async def test_whatever_a_function_raises_is_its_result_and_holds_nothing_up(
    pool: Pool, journal: Journal, in_thread: bool
) -> None:
    class Panic(BaseException):
        """What libraries in Rust raise is no Exception."""

    def fail() -> None:
        raise Panic("it broke")

    if in_thread:

        @function(name="work")
        def work(name: str) -> None:
            fail()
    else:

        @function(name="work")
        async def work(name: str) -> None:
            fail()

    positions = Positions(0)
    pool.take(positions, 0, command("a"))
    (failed,) = await until(lambda: journal.of(StepFailed))
    await journal.flushed()

    assert (failed.error_type.rpartition(".")[2], failed.message) == ("Panic", "it broke")
    assert positions.done == 1
    assert pool.running == 0


async def test_a_withdrawn_step_is_cancelled_and_leaves_no_result(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal, concurrency=1), Positions(0)
    pool.take(positions, 0, command("running"))
    pool.take(positions, 1, command("waiting"))
    await until(lambda: steps.begun)

    pool.take(positions, 2, StepWithdrawn("waiting", "0"))
    pool.take(positions, 3, StepWithdrawn("running", "0"))
    await until(lambda: steps.cancelled)
    await pool.close(0)

    assert steps.begun == ["running"]
    assert journal.records == []
    assert positions.done == 4


async def test_a_step_that_is_withdrawn_before_it_has_begun_keeps_no_slot_and_is_silent(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal, concurrency=1, beat=0.01), Positions(0)
    pool.take(positions, 0, command("gone"))
    pool.take(positions, 1, StepWithdrawn("gone", "0"))  # read in one go
    await asyncio.sleep(0.05)
    assert journal.records == []
    steps.let("next")
    pool.take(positions, 2, command("next"))
    await until(lambda: journal.of(StepSucceeded))
    assert steps.begun == ["next"]
    assert positions.done == 3
    assert pool.slots.running == 0


async def test_a_long_step_says_that_it_is_in_hand_and_no_longer_holds_up_commits(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal, beat=0.02), Positions(0)
    pool.take(positions, 0, command("slow"))
    pool.take(positions, 1, command("quick"))
    steps.let("quick")
    await until(lambda: journal.beats().count(("slow", "working")) >= 3)

    assert positions.done == 2
    steps.let("slow")
    await until(lambda: len(journal.of(StepSucceeded)) == 2)
    count = len(journal.beats())
    await asyncio.sleep(0.06)
    assert len(journal.beats()) == count


async def test_a_function_can_say_that_it_is_alive_from_a_thread(pool: Pool, journal: Journal) -> None:
    @function(name="work")
    def work(ctx: FunctionContext, name: str) -> None:
        for n in range(100):
            ctx.heartbeat({"done": n})

    pool.take(Positions(0), 0, command("a"))
    await until(lambda: journal.of(StepSucceeded))

    assert len(journal.beats()) <= 1


async def test_an_open_command_does_not_hold_up_hundreds_behind_it(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal, limits={"blocked": Limit(1, 1e-6)}), Positions(0)

    @function(name="blocked")
    async def blocked(name: str) -> None:
        await asyncio.Event().wait()

    pool.take(positions, 0, command("running"))
    for n in (1, 2):
        pool.take(positions, n, command(f"held-{n}", "blocked"))
    for n in range(3, 603):
        steps.let(f"r{n}")
        pool.take(positions, n, command(f"r{n}"))
    await until(lambda: len(journal.of(StepSucceeded)) == 600)
    assert positions.done == 0

    for _ in range(3):
        pool.unblock([positions])
        await journal.flushed()

    assert positions.done == 603
    assert journal.beats() == [("running", "working"), ("held-1", "working"), ("held-2", "left")]


async def test_when_partitions_go_what_runs_goes_on_here_and_what_waits_is_somebody_elses(journal: Journal) -> None:
    steps, pool = Steps(), new_pool(journal, concurrency=2)
    positions, staying = Positions(0), Positions(0)
    for n, name in enumerate(("one", "two", "three", "four")):
        pool.take(positions, n, command(name))
    pool.take(staying, 0, command("other"))
    await until(lambda: len(steps.begun) == 2)

    await pool.release([positions])

    assert positions.done == 2
    assert sorted(journal.beats()) == [("one", "working"), ("two", "working")]
    for name in ("one", "two", "other"):
        steps.let(name)
    await until(lambda: len(journal.of(StepSucceeded)) == 3)
    assert steps.begun == ["one", "two", "other"]
    await pool.close(0)


async def test_what_waits_before_something_finished_is_sent_anew_when_its_partition_goes(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal, limits={"blocked": Limit(1)}), Positions(0)

    @function(name="blocked")
    async def blocked(name: str) -> None:
        await asyncio.Event().wait()

    pool.take(positions, 0, command("begun", "blocked"))
    pool.take(positions, 1, command("waits", "blocked"))
    steps.let("done")
    pool.take(positions, 2, command("done"))
    pool.take(positions, 3, command("also waits", "blocked"))
    await until(lambda: journal.of(StepSucceeded))

    await pool.release([positions])

    assert positions.done == 3
    assert journal.beats() == [("begun", "working"), ("waits", "left")]
    await pool.close(0)


async def test_a_worker_that_stops_finishes_what_it_can_and_leaves_the_rest(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal), Positions(0)
    for n, name in enumerate(("ends", "hangs")):
        pool.take(positions, n, command(name))
    await until(lambda: len(steps.begun) == 2)
    asyncio.get_running_loop().call_later(0.02, steps.let, "ends")

    await pool.close(0.1)

    assert [result.run_id for result in journal.of(StepSucceeded)] == ["ends"]
    assert journal.beats() == [("hangs", "left")]
    assert steps.cancelled == ["hangs"]
    assert positions.done == 2


async def test_a_function_that_the_worker_does_not_have_is_said_to_be_unknown(pool: Pool, journal: Journal) -> None:
    positions = Positions(0)
    pool.take(positions, 0, command("a", "nowhere"))
    await until(lambda: journal.records)
    await journal.flushed()

    assert journal.beats() == [("a", "unknown")]
    assert positions.done == 1


async def test_a_step_that_workers_died_with_begins_only_when_nothing_else_runs(journal: Journal) -> None:
    steps, pool, positions = Steps(), new_pool(journal), Positions(0)
    pool.take(positions, 0, command("first"))
    pool.take(positions, 1, command("suspect", alone=True))
    pool.take(positions, 2, command("later"))
    await until(lambda: steps.begun)
    await journal.flushed()
    assert steps.begun == ["first"]

    steps.let("first")
    await until(lambda: len(steps.begun) == 2)
    assert steps.begun == ["first", "suspect"]
    assert journal.beats() == [("suspect", "alone")]
    steps.let("suspect")
    await until(lambda: len(steps.begun) == 3)
    steps.let("later")
    await until(lambda: len(journal.of(StepSucceeded)) == 3)


async def test_a_result_that_is_too_large_fails_the_step_for_good(pool: Pool, journal: Journal) -> None:
    @function(name="work", retries=5)
    async def work(name: str) -> str:
        return "x" * 2000

    pool.take(Positions(0), 0, command("a"))
    (failed,) = await until(lambda: journal.of(StepFailed))

    assert failed.retry_at is None
    assert "AGNT5_MAX_PAYLOAD_BYTES" in failed.message


async def test_what_a_dead_worker_may_have_had_is_asked_for_not_executed(pool: Pool, journal: Journal) -> None:
    steps, positions = Steps(), Positions(0)
    journal.held = []
    pool.ask(positions, 0, command("a"))
    await journal.flushed()

    assert journal.beats() == [("a", "again")]
    assert positions.done == 0
    journal.held.pop()()
    assert positions.done == 1
    assert steps.begun == []
    pool.take(positions, 1, command("a"))  # still wanted
    await until(lambda: steps.begun == ["a"])
