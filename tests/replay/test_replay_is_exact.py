"""Same records, same code, same decisions: checked on workflows and schedules drawn at random."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agnt5.replay.protocol import Completed
from agnt5.replay.session import SessionGate
from tests.replay.model import Model

seconds = st.sampled_from([0.5, 1, 5, 3600])
keys = st.sampled_from(["a", "b", "n"])
simple = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 9)),
    st.tuples(st.just("closure")),
    st.tuples(st.just("coroutine")),
    st.tuples(st.just("in_place"), st.integers(0, 9)),
    st.tuples(st.just("sleep"), seconds),
    st.tuples(st.just("asyncio_sleep"), seconds),
    st.tuples(st.just("yield")),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("set"), keys, st.integers(0, 9)),
    st.tuples(st.just("increment"), st.booleans()),
    st.tuples(st.just("update")),
    st.tuples(st.just("user_update")),
    st.tuples(st.just("state")),
    st.tuples(st.just("signal"), keys, st.none() | seconds),
    st.tuples(st.just("user"), st.none() | seconds),
    st.tuples(st.just("child")),
    st.tuples(st.just("start"), seconds),
    st.tuples(st.just("emit"), st.integers()),
    st.tuples(st.just("random")),
    st.tuples(st.just("patched"), keys),
    st.tuples(st.just("operations"), st.lists(st.integers(0, 9), max_size=3)),
    st.tuples(
        st.just("batch"), st.lists(st.integers(0, 9), max_size=5), st.integers(1, 3), st.none() | seconds
    ),
    st.tuples(st.just("map"), st.lists(st.integers(0, 9), max_size=4), st.integers(1, 3)),
)  # fmt: skip


def nested(plans: Any) -> Any:
    plan = st.lists(plans, max_size=3)
    branches = st.lists(plan, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("parallel"), branches, st.booleans()),
        st.tuples(st.just("asyncio_gather"), branches),
        st.tuples(st.just("group"), branches),
        st.tuples(st.just("race"), branches),
        st.tuples(st.just("wait_for"), plan, seconds),
        st.tuples(st.just("timeout"), plan, seconds),
        st.tuples(st.just("finally"), plan, plan),
        simple,
    )


plans = st.lists(st.recursive(simple, nested, max_leaves=12), min_size=1, max_size=6)
seeds = st.integers(0, 2**32)
drawn = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@drawn
@given(plans, seeds, st.booleans())
def test_a_rebuild_after_any_event_changes_nothing(plan: list[Any], seed: int, cancels: bool) -> None:
    plan = json.loads(json.dumps(plan))
    straight = Model(plan, seed, cancels=cancels).run()
    for rebuild in (lambda n: True, lambda n: n % 3 == 0):
        evicted = Model(plan, seed, cancels=cancels, rebuild=rebuild).run()
        assert evicted.turns == straight.turns
        assert evicted.history == straight.history
        assert evicted.session == straight.session


@drawn
@given(plans, seeds, st.booleans())
def test_the_whole_history_gives_the_same_end(plan: list[Any], seed: int, cancels: bool) -> None:
    model = Model(json.loads(json.dumps(plan)), seed, cancels=cancels).run()
    if model.outcome is None:
        return
    again = model.fresh()
    turn = again.rebuild(model.history, {})
    while again.calls:
        for token, call in sorted(again.calls.items(), reverse=True):
            turn = again.finish_call(token, call.args[0])
    assert turn.outcome == model.outcome
    assert again.replayed == len(model.history)


def all_paths(model: Model) -> list[tuple[str, str]]:
    """Every path that was ever asked or read, with what it was."""
    return sorted(
        {(ask.path, type(ask).__name__) for turn in model.turns for ask in turn[2]}
        | {(path, "read") for turn in model.turns for path, _ in turn[4]}
    )


safe = st.lists(
    st.one_of(
        st.tuples(st.just("sleep"), seconds),
        st.tuples(st.just("closure")),
        st.tuples(st.just("operations"), st.lists(st.integers(0, 9), max_size=3)),
        st.tuples(st.just("get"), keys),
        st.tuples(st.just("increment"), st.booleans()),
        st.tuples(st.just("emit"), st.integers()),
        st.tuples(st.just("in_place"), st.integers(0, 9)),
    ),
    max_size=4,
)


@drawn
@given(safe, safe, st.lists(seeds, min_size=2, max_size=6))
def test_every_interleaving_of_two_branches_gives_the_same_paths(one: list[Any], two: list[Any], order: Any) -> None:
    plan = json.loads(json.dumps([("parallel", [one, [("parallel", [two, one], True)]], True), ("closure",)]))
    paths = [all_paths(Model(plan, seed).run()) for seed in order]
    assert all(found == paths[0] for found in paths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(1, 4), seeds)
def test_get_then_set_loses_nothing_between_branches(yields: list[bool], times: int, seed: int) -> None:
    branches = [[("increment", each), ("step", 1)] * times for each in yields]
    model = Model(json.loads(json.dumps([("parallel", branches, False)])), seed).run()
    assert isinstance(model.outcome, Completed)
    assert model.session["n"] == str(times * len(yields)).encode()


def test_without_the_gate_branches_would_lose_increments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    monkeypatch.setattr(SessionGate, "enter", lambda self, operation: operation.go())
    lost = 0
    for seed in range(20):
        model = Model([["parallel", [[["increment", True]]] * 3, False]], seed).run()
        lost += model.session["n"] != b"3"
    assert lost
