"""A test that cannot fail proves nothing: each rule of the core is switched off, and the worlds must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from agnt5_engine.runs import activate, ask, checkpoint, commands, commit, results, settle, table, writes
from agnt5_engine.runs import apply as core
from agnt5_engine.runs import history as h
from agnt5_engine.runs.model import Session
from agnt5_engine.runs.state import PartitionState
from tests.runs import simulator
from tests.runs.simulator import Owner
from tests.runs.worlds import WORLDS, live

#: Worlds of each kind in which a mutation must have shown.
ENOUGH = 40

Patch = pytest.MonkeyPatch


def first_record_does_not_win(patch: Patch) -> None:
    """A run that has ended is ended again by the next record that says so."""

    def open_run(state: Any, held: Any, record: Any) -> Any:
        run = state.run(record.run_id)
        if run is None or (run.ended and type(record).__name__ != "RunFinished"):
            return None
        if run.status == "paused":
            results._hold(state, run, held)
            return None
        return run

    patch.setattr(results, "open_run", open_run)


def claims_are_ignored(patch: Patch) -> None:
    apply = core.apply

    def with_any_claim(state: PartitionState, offset: int, time: int, record: Any) -> None:
        claim = getattr(record, "claim", None)
        apply(state, offset, time, record if claim is None else record._replace(claim=max(claim, state.claim)))

    patch.setattr(core, "apply", with_any_claim)


def the_queue_is_not_in_the_rows(patch: Patch) -> None:
    session_row = checkpoint.session_row
    patch.setattr(checkpoint, "session_row", lambda session: session_row(session)._replace(queue=[]))


def nothing_waits_for_a_session_write(patch: Patch) -> None:
    patch.setattr(Session, "busy", property(lambda session: session.turn is not None))


def a_void_write_is_not_asked_again(patch: Patch) -> None:
    # Its base is always wrong by one, so that there are void writes.
    write = writes.state_written

    def badly_based(state: Any, session: Any, run_id: str, asked: Any) -> Any:
        return write(state, session, run_id, asked)._replace(base=session.base - 1)

    patch.setattr(writes, "state_written", badly_based)
    patch.setattr(results, "state_written", lambda *given: write(*given)._replace(run_id="nobody"))


def failures_have_no_attempt(patch: Patch) -> None:
    failed = results.step_failed

    def of_any_attempt(state: PartitionState, held: Any, r: Any) -> None:
        run = state.run(r.run_id)
        p = run.pending.get(r.path) if run is not None else None
        failed(state, held, r if p is None else r._replace(attempt=p.attempt))

    patch.setattr(results, "step_failed", of_any_attempt)


def what_is_pending_is_not_asked_again(patch: Patch) -> None:
    patch.setattr(ask, "ask_everything", lambda state, *, unclean: None)


def a_checkpoint_is_not_atomic(patch: Patch) -> None:
    """Half of its rows land, and the rest with the marker perhaps never."""
    write = Owner.write

    def by_halves(owner: Owner) -> None:
        assert owner.writing is not None
        if owner.place.changelog.epoch == owner.epoch:
            rows = [row for row in owner.writing.rows if row.key[:1] not in table.DERIVED_FAMILIES]
            owner.place.changelog.write(rows[: len(rows) // 2])
            if owner.world.chaos and owner.world.r.random() < 0.5:
                owner.die()
                owner.world.take_over(owner.partition)
                return
        write(owner)

    patch.setattr(Owner, "write", by_halves)


def a_checkpoint_is_not_fenced(patch: Patch) -> None:
    write = Owner.write

    def unfenced(owner: Owner) -> None:
        owner.epoch = owner.place.changelog.epoch
        write(owner)

    patch.setattr(Owner, "write", unfenced)


def replay_takes_another_order(patch: Patch) -> None:
    replayed = h.replayed

    def turned(history: Any) -> Any:
        first, *others = replayed(history)
        return [first, *reversed(others)]

    patch.setattr(h, "replayed", turned)


def reads_are_not_in_the_rows(patch: Patch) -> None:
    replayed = h.replayed
    patch.setattr(h, "replayed", lambda history: [past._replace(reads=()) for past in replayed(history)])


def replay_takes_the_time_of_today(patch: Patch) -> None:
    replayed = h.replayed
    patch.setattr(h, "replayed", lambda history: [p._replace(time=history[-1].time) for p in replayed(history)])


def a_signal_stays_after_it_was_taken(patch: Patch) -> None:
    patch.setattr(commit, "_take_signal", lambda run, name: None)
    settle_one = settle._settle_one
    # Once is enough: for ever would be too much.
    seen: set[tuple[str, str]] = set()

    def once(state: Any, run: Any, held: Any) -> bool:
        key = (run.run_id, ",".join(run.pending))
        if key in seen:
            return False
        seen.add(key)
        return settle_one(state, run, held)

    patch.setattr(settle, "_settle_one", once)


def a_request_starts_what_is_known(patch: Patch) -> None:
    def again(state: Any, held: Any, run: Any, r: Any) -> None:
        if not run.ended and not run.ending:
            commit.drop_activation(run)
            for path in list(run.pending):
                state.drop_pending(run, path)
            activate.advance(state, run, activate.Cause(held, None))

    patch.setattr(commands, "_requested_again", again)


def a_command_gets_no_verdict(patch: Patch) -> None:
    verdict = PartitionState.verdict

    def rarely(state: PartitionState, command_id: str, *given: Any, **more: Any) -> None:
        if not command_id.startswith("answer"):
            verdict(state, command_id, *given, **more)

    patch.setattr(PartitionState, "verdict", rarely)


def a_retried_run_keeps_nothing_behind_a_failure(patch: Patch) -> None:
    patch.setattr(commit, "earlier_result", lambda run, asked: None)


def calls_are_interrupted_anywhere(patch: Patch) -> None:
    said = core._call_interrupted
    patch.setattr(core, "_call_interrupted", lambda session, opened, returned: said(session, opened, 1 << 60))


def code_that_waits_for_calls_is_kept_beforehand(patch: Patch) -> None:
    prepare = simulator.prepare

    def keep(state: PartitionState, run: Any) -> None:
        with patch.context() as here:
            here.setattr(activate, "drop_activation", lambda run: None)
            prepare(state, run)

    patch.setattr(simulator, "prepare", keep)


def a_row_that_was_changed_is_not_deleted(patch: Patch) -> None:
    drop = PartitionState.drop_pending

    def if_saved(state: PartitionState, run: Any, path: str) -> Any:
        p = drop(state, run, path)
        if p is not None and not p.saved:
            run.gone.pop(path, None)
        return p

    patch.setattr(PartitionState, "drop_pending", if_saved)


def a_parked_run_keeps_no_records(patch: Patch) -> None:
    patch.setattr(results, "_hold", lambda state, run, held: None)


def parked_runs_are_not_tried_by_the_next_owner(patch: Patch) -> None:
    def only_the_claim(state: PartitionState, offset: int) -> None:
        state.claim = offset
        state.effects.append(core.Superseded(offset))

    patch.setattr(core, "_owner_claimed", only_the_claim)


def event_numbers_count_asks_twice(patch: Patch) -> None:
    count = h.public_count
    patch.setattr(h, "public_count", lambda row: count(row) + len(row.asks))


def outputs_are_taken_for_sent(patch: Patch) -> None:
    post = PartitionState.post

    def forget(state: PartitionState, row: Any) -> None:
        post(state, row)
        if row.topic == ":outcomes" and state.applied % 3 == 0:
            del state.outbox[row.id]

    patch.setattr(PartitionState, "post", forget)


def rows_come_back_changed(patch: Patch) -> None:
    write = checkpoint.encode

    def damaged(record: Any) -> bytes:
        if type(record).__name__ == "HistoryRow" and record.value is not None:
            record = record._replace(value=encode_again(record.value))
        return write(record)

    patch.setattr(checkpoint, "encode", damaged)


def encode_again(value: bytes) -> bytes:
    return value.replace(b"1", b"2")


class Mutation(NamedTuple):
    rule_off: Callable[[Patch], None]
    worlds: tuple[str, ...]
    shows_as: tuple[str, ...] = ()
    """How it must show; empty: in any way."""
    kinds: tuple[str, ...] = ()
    """What the workflows consist of, where it shows only in some."""


MUTATIONS = [
    Mutation(first_record_does_not_win, ("everything",)),
    Mutation(claims_are_ignored, ("sessions", "storms"), ("session counter",)),
    Mutation(the_queue_is_not_in_the_rows, ("sessions", "storms", "calls")),
    Mutation(nothing_waits_for_a_session_write, ("sessions",)),
    Mutation(a_void_write_is_not_asked_again, ("sessions",), ("never ends", "stuck")),
    Mutation(failures_have_no_attempt, ("everything", "storms"), ("wrong result",)),
    Mutation(what_is_pending_is_not_asked_again, ("storms",), ("never ends",)),
    Mutation(a_checkpoint_is_not_atomic, ("storms",)),
    Mutation(a_checkpoint_is_not_fenced, ("storms",)),
    Mutation(replay_takes_another_order, ("everything",)),
    Mutation(reads_are_not_in_the_rows, ("sessions",)),
    Mutation(replay_takes_the_time_of_today, ("storms",), kinds=("chance", "chance", "step", "sleep")),
    Mutation(a_signal_stays_after_it_was_taken, ("commands",)),
    Mutation(a_request_starts_what_is_known, ("commands",)),
    Mutation(a_command_gets_no_verdict, ("commands",), ("no verdict",)),
    Mutation(a_retried_run_keeps_nothing_behind_a_failure, ("everything",), ("a completed step is executed again",)),
    Mutation(calls_are_interrupted_anywhere, ("interrupts",)),
    Mutation(code_that_waits_for_calls_is_kept_beforehand, ("foreseen",)),
    Mutation(a_row_that_was_changed_is_not_deleted, ("storms",)),
    Mutation(a_parked_run_keeps_no_records, ("other code",), ("never ends",), ("child", "user", "step")),
    Mutation(parked_runs_are_not_tried_by_the_next_owner, ("other code",), ("parked for ever",)),
    Mutation(event_numbers_count_asks_twice, ("everything",), ("event numbers have gaps",)),
    Mutation(outputs_are_taken_for_sent, ("everything",), ("outcome missing",)),
    Mutation(rows_come_back_changed, ("storms",)),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.rule_off.__name__)
def test_it_is_noticed_when(mutation: Mutation, monkeypatch: Patch) -> None:
    mutation.rule_off(monkeypatch)
    for seed in range(ENOUGH):
        for name in mutation.worlds:
            weather = replace(WORLDS[name], kinds=mutation.kinds or WORLDS[name].kinds)
            _, faults = live(name, seed, weather)
            shown = {f.guarantee for f in faults}
            if shown and (not mutation.shows_as or shown & {*mutation.shows_as}):
                return
    pytest.fail(f"{ENOUGH} worlds of {mutation.worlds} are as they were without it")
