"""What the core promises, in worlds where owners die, come back, and hear everything late, twice or never.

A failure names the world and the seed; `live(name, seed)` of `worlds.py` goes through it again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agnt5_engine.records.avro import encode
from agnt5_engine.runs import ask, checkpoint, table
from agnt5_engine.runs.checkpoint import Row
from agnt5_engine.runs.effects import Call, InterruptCall
from agnt5_engine.runs.state import PartitionState
from tests.runs.checks import at_once, step_through, undisturbed
from tests.runs.simulator import Code, Owner, core, marker_of
from tests.runs.snapshots import differences, snapshot
from tests.runs.storage import Store, evict, state_of
from tests.runs.worlds import ENOUGH, WORLDS, Fault, live, seeds

#: Every guarantee that `checks.py` speaks of, so that none is lost between there and here.
GUARANTEES = {
    "breaks",
    "owners disagree",
    "a completed step is executed again",
    "never ends",
    "ended and waits",
    "stuck",
    "never sent",
    "parked for ever",
    "no verdict",
    "verdict repeated",
    "event numbers have gaps",
    "event count is wrong",
    "started twice",
    "wrong result",
    "wrong end",
    "wrong error",
    "lost",
    "outcomes differ",
    "outcome missing",
    "session counter",
    "user counter",
    "signal",
}


class Story:
    """What happened in all the worlds."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.counts = Counter[str]()
        for name, seed in seeds():
            world, faults = live(name, seed)
            self.faults += faults
            self.counts += world.count
            self.counts["worlds"] += 1
            self.counts["records"] += sum(len(place.journal) for place in world.places)
            self.counts["compared"] += world.observer.compared  # type: ignore[attr-defined]

    def refute(self, *guarantees: str) -> None:
        assert {*guarantees} <= GUARANTEES
        found = [f for f in self.faults if f.guarantee in guarantees]
        told = "\n".join(f"world {f.world!r}, seed {f.seed}: {f.told[:500]}" for f in found[:5])
        assert not found, f"{len(found)} faults in {self.counts['worlds']} worlds:\n{told}"


@pytest.fixture(scope="module")
def story() -> Story:
    return Story()


def test_nothing_breaks_and_no_fault_is_of_an_unknown_kind(story: Story) -> None:
    story.refute("breaks")
    assert {f.guarantee for f in story.faults} <= GUARANTEES


def test_the_worlds_are_rough_enough(story: Story) -> None:
    assert story.counts["worlds"] >= ENOUGH * len(WORLDS)
    assert story.counts["take-overs"] > 3 * story.counts["worlds"]
    assert story.counts["repeated"] > story.counts["worlds"]
    assert story.counts["compared"] > story.counts["worlds"]


def test_all_owners_that_were_at_an_offset_knew_the_same_there(story: Story) -> None:
    story.refute("owners disagree")


def test_a_completed_step_is_never_executed_again(story: Story) -> None:
    story.refute("a completed step is executed again")


def test_every_run_ends_and_waits_for_nothing_afterwards(story: Story) -> None:
    story.refute("never ends", "ended and waits", "stuck", "lost")


def test_every_output_is_sent_in_the_end(story: Story) -> None:
    story.refute("never sent")


def test_parked_runs_go_on_when_fitting_code_comes(story: Story) -> None:
    story.refute("parked for ever")


def test_every_command_gets_one_verdict_where_it_was_applied(story: Story) -> None:
    story.refute("no verdict", "verdict repeated")


def test_public_events_are_numbered_without_gaps(story: Story) -> None:
    story.refute("event numbers have gaps", "event count is wrong")


def test_a_request_that_comes_again_starts_nothing(story: Story) -> None:
    story.refute("started twice")


def test_a_run_ends_as_its_program_says(story: Story) -> None:
    story.refute("wrong result", "wrong end", "wrong error")


def test_an_end_is_published_and_always_the_same(story: Story) -> None:
    story.refute("outcomes differ", "outcome missing")


def test_session_counters_equal_the_increments(story: Story) -> None:
    story.refute("session counter")


def test_user_counters_equal_the_increments(story: Story) -> None:
    story.refute("user counter")


def test_a_signal_is_taken_once(story: Story) -> None:
    story.refute("signal")


# ------------------------------------------------------------------ after every record


def asked_of(state: PartitionState) -> list[str]:
    """What an owner with this state would have done, whoever it is."""
    state.effects = []
    ask.ask_everything(state, unclean=False)
    found = sorted(repr(e) for e in state.effects if not isinstance(e, Call | InterruptCall))
    state.effects = []
    return found


def live_rows(store: Store) -> set[bytes]:
    """The keys of the rows that recovery reads at once; histories may stand in their run's row instead."""
    derived = {table.BY_CREATED, table.BY_FINISHED, table.BY_ASKED}
    return {key for key in store.keys if key[:1] not in derived | {table.HISTORY, table.MARKER}}


@pytest.mark.parametrize("name", [name for name in WORLDS if name not in ("other code", "interrupts")])
@pytest.mark.parametrize("seed", range(4))
def test_an_owner_that_dies_after_any_record_leaves_all_that_the_next_one_needs(name: str, seed: int) -> None:
    """The rows as of every record, and the journal after it, come to what was there without a crash."""
    world, _ = live(name, seed)
    for owner in world.current():
        _die_after_every_record(owner)


def _die_after_every_record(owner: Owner) -> None:
    code = Code(fits=True)
    store = Store()
    stores: list[Store] = []
    told: list[dict[str, Any]] = []
    asked: list[list[str]] = []

    def checkpoint_here(state: PartitionState, offset: int) -> None:
        told.append(snapshot(state))
        asked.append(asked_of(state))
        rows = checkpoint.collect(state)
        store.write([*rows, Row(table.MARKER, encode(marker_of(state)))])
        if offset % 3 == 0:
            checkpoint.forget_clean(state, keep=offset % 2)
        stores.append(Store(store))

    end = len(owner.place.journal)
    step_through(owner, store, code, 0, end, checkpoint_here)

    for offset, before in enumerate(stores):

        def compare(state: PartitionState, at: int, offset: int = offset) -> None:
            assert undisturbed(state)
            now = snapshot(state)
            assert now == told[at], f"rows as of {offset}, at {at}: {differences(told[at], now)}"

        state = state_of(before, code)
        for key in list(state.sessions):
            core.resume_queue(state, key)
            at_once(state)
        compare(state, offset)
        assert asked_of(state) == asked[offset], f"rows as of {offset}"
        evict(state)
        state = step_through(owner, before, code, offset + 1, min(offset + 6, end), compare)
        later = Store(before)
        later.write(checkpoint.collect(state))
        assert live_rows(later) == live_rows(stores[state.applied]), f"rows as of {offset}"


def test_a_journal_alone_tells_everything() -> None:
    """From offset 0, without any row."""
    for name in ("everything", "sessions", "calls"):
        world, _ = live(name, 1)
        for owner in world.current():
            if not owner.alive:
                final = snapshot(owner.state)
                alone = step_through(owner, Store(), Code(fits=True), 0, len(owner.place.journal), lambda s, o: None)
                assert snapshot(alone) == final, differences(final, snapshot(alone))
