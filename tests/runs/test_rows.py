"""State to rows and back: nothing is lost between what a partition knows and what it writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agnt5.replay.protocol import (
    ChildAsk,
    EmitAsk,
    SignalAsk,
    SleepAsk,
    StepAsk,
    TellChildAsk,
    UserAsk,
    UserStateAsk,
    WriteAsk,
)
from agnt5_engine.records.avro import decode, encode
from agnt5_engine.records.journal import RunFinished, RunRetried
from agnt5_engine.records.rows import PendingRow, SessionRow, UserRow
from agnt5_engine.runs import checkpoint, table
from agnt5_engine.runs.model import DeadlineAsk, EndAsk, Pending, Run
from agnt5_engine.runs.rows import pending_of, pending_row, run_of, run_row, session_of, session_row, user_of, user_row
from tests.runs.snapshots import snapshot
from tests.runs.storage import Store, state_of
from tests.runs.test_records import records, values
from tests.runs.worlds import live

#: What of a run is about this process, not about the run.
MEMORY = {"activation", "earlier", "executing", "gone", "head_changed", "replaces", "saved", "stored"}

ASKS = [StepAsk, SleepAsk, UserAsk, SignalAsk, ChildAsk, WriteAsk, UserStateAsk, EmitAsk, TellChildAsk, DeadlineAsk]


def attributes(thing: Any, without: set[str]) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in thing.__slots__ if name not in without}


@st.composite
def pendings(draw: st.DrawFn) -> Pending:
    end = st.builds(EndAsk, st.text(), records(RunFinished) | records(RunRetried))
    ask = draw(st.one_of(*map(records, ASKS), end))
    if isinstance(ask, UserAsk):
        ask = ask._replace(options=ask.options or b"[]")
    p = Pending(ask, draw(st.integers(0, 2**45)))
    p.attempt, p.restarts, p.isolated = (draw(st.integers(0, 99)) for _ in range(3))
    p.retry_at, p.beat_at = (draw(st.none() | st.integers(0, 2**45)) for _ in range(2))
    p.dispatched, p.kept = draw(st.booleans()), draw(st.booleans())
    return p


@given(pendings())
@settings(max_examples=500, deadline=None)
def test_what_a_run_waits_for_survives_its_row(p: Pending) -> None:
    if isinstance(p.ask, EmitAsk):  # its headers stand in the outbox
        p.ask = p.ask._replace(headers=())
    row = pending_row("run", p.ask.path, p)
    back = pending_of(decode(encode(row)))
    assert attributes(back, {"saved", "stored"}) == attributes(p, {"saved", "stored"})
    assert back.saved
    assert back.stored
    assert pending_row("run", p.ask.path, back) == row


@given(records(SessionRow), records(UserRow))
@settings(max_examples=200, deadline=None)
def test_sessions_and_users_survive_their_rows(session: SessionRow, user: UserRow) -> None:
    if session.lock_run is None or session.lock_path is None:
        session = session._replace(lock_run=None, lock_path=None)
    assert session_row(session_of(session)) == session
    assert user_row(user_of(user)) == user


@pytest.mark.parametrize("name", ["everything", "commands", "other code"])
def test_a_run_read_back_from_its_row_equals_the_one_that_was_written(name: str) -> None:
    seen = 0
    for seed in range(3):
        world, _ = live(name, seed)
        for owner in world.current():
            for run in owner.every_run():
                row = run_row(run, inline=True)
                back = run_of(decode(encode(row)))
                skip = MEMORY | {"pending", "tells", "keeps"}  # these come from rows of their own
                assert attributes(back, skip) == attributes(run, skip)
                assert run_row(back, inline=True) == row
                seen += 1
    assert seen > 10


def test_a_run_that_is_read_from_the_table_is_the_run_that_was_written() -> None:
    """Whatever moment its rows were written at, whether its history is inside its row or not."""
    for seed in range(3):
        world, _ = live("everything", seed)
        for owner in world.current():
            before = snapshot(owner.state)
            owner.store.write(checkpoint.collect(owner.state))
            checkpoint.forget_clean(owner.state, keep=0)
            assert snapshot(owner.state) == before
            counted = {run_id: run.seq for run_id, run in owner.state.runs.items()}
            again = state_of(Store(owner.store), owner.code)
            again.claim, again.now = owner.state.claim, owner.state.now
            assert snapshot(again) == before
            for run_id in counted:
                assert again.run(run_id) is not None


@given(values(dict[str, str]))
def test_a_row_of_a_run_without_history_has_none(metadata: Any) -> None:
    run = Run("run", "run", "workflow", b"{}", 1)
    run.metadata = metadata
    assert run_of(decode(encode(run_row(run, inline=True)))).history == []
    assert run_row(run, inline=False).history == []


def test_keys_sort_as_time_goes() -> None:
    times = [0, 1, 255, 256, 1_700_000_000_000, 2**45]
    finished = [table.finished_key(t, b"run") for t in times]
    assert finished == sorted(finished)
    assert [table.finished_of(key) for key in finished] == [(t, "run") for t in times]
    created = [table.created_key(t, b"run") for t in times]
    assert created == sorted(created, reverse=True)
    assert [table.created_of(key)[0] for key in created] == times
    histories = [table.history_key("run", i) for i in (0, 1, 255, 256, 70_000)]
    assert histories == sorted(histories)


def test_rows_of_one_run_are_not_taken_for_those_of_another() -> None:
    """`run` is a prefix of `run.child` and of `run2`."""
    for other in ("run.child", "run2"):
        assert not table.history_key(other, 0).startswith(table.history_prefix("run"))
        assert not table.pending_key(other, "0").startswith(table.pending_prefix("run"))


def test_a_pending_row_of_an_unknown_kind_is_refused() -> None:
    row = pending_row("run", "0", Pending(SleepAsk("0", "sleep", 1), 0))
    assert isinstance(row, PendingRow)
    with pytest.raises(ValueError, match="unknown kind 'dance'"):
        pending_of(row._replace(ask="dance"))
