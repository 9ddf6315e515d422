from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5 import BackoffPolicy, FatalError, RetryPolicy
from agnt5.errors import EncodeError, step_error
from agnt5.policies import StepOptions
from agnt5.replay.protocol import ErrorInfo


class CardDeclined(ValueError): ...


policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 1000),
    initial_interval_ms=st.integers(0, 10**7),
    max_interval_ms=st.integers(0, 10**7),
    retry_on=st.none() | st.lists(st.sampled_from([ValueError, CardDeclined, OSError]), max_size=3),
)
backoffs = st.builds(
    BackoffPolicy,
    type=st.sampled_from(["exponential", "linear", "constant"]),
    multiplier=st.floats(1, 1e9),
)
options = st.builds(
    lambda retries, backoff, timeout, queue: StepOptions().changed(
        retries=retries, backoff=backoff, timeout_ms=timeout, queue=queue
    ),
    policies,
    backoffs,
    st.none() | st.integers(1, 10**9),
    st.none() | st.sampled_from(["gpu", "slow.jobs"]),
)


@given(options)
def test_options_survive_their_way_through_the_log(given_options: StepOptions) -> None:
    assert StepOptions.from_json(given_options.to_json()) == given_options


@given(options, st.integers(1, 5000), st.floats(0, 1))
def test_a_wait_is_never_longer_than_its_limit_and_a_tenth(
    given_options: StepOptions, attempt: int, jitter: float
) -> None:
    wait = given_options.delay_ms(attempt, jitter)
    calm = given_options.delay_ms(attempt, 0.0)
    assert 0 <= calm <= given_options.max_interval_ms
    assert calm <= wait <= calm * 1.1 + 1


def test_waits_grow_as_the_backoff_says() -> None:
    def waits(**backoff: Any) -> list[int]:
        chosen = StepOptions().changed(retries=RetryPolicy(9, 100, 1000), backoff=backoff)
        return [chosen.delay_ms(attempt) for attempt in range(1, 6)]

    assert waits(type="exponential") == [100, 200, 400, 800, 1000]
    assert waits(type="exponential", multiplier=3) == [100, 300, 900, 1000, 1000]
    assert waits(type="linear") == [100, 200, 300, 400, 500]
    assert waits(type="constant") == [100] * 5


def test_a_bare_function_is_tried_three_times() -> None:
    bare = StepOptions()
    assert [bare.retryable(ValueError(), attempt) for attempt in (1, 2, 3)] == [True, True, False]
    assert (bare.initial_interval_ms, bare.max_interval_ms, bare.backoff, bare.multiplier) == (
        1000,
        60_000,
        "exponential",
        2,
    )


def test_fatal_errors_and_results_that_cannot_be_kept_are_not_tried_again() -> None:
    many = StepOptions(max_attempts=100)
    assert not many.retryable(FatalError("no"), 1)
    assert not many.retryable(EncodeError("no"), 1)
    assert not many.retryable(step_error(ErrorInfo("agnt5.errors.FatalError", "no")), 1)
    assert many.retryable(TimeoutError(), 99)


def test_only_the_named_types_and_their_subclasses_are_tried_again() -> None:
    chosen = StepOptions().changed(retries=RetryPolicy(retry_on=[ValueError, ConnectionError]))
    for round_trip in (chosen, StepOptions.from_json(chosen.to_json())):
        assert round_trip.retryable(CardDeclined(), 1)
        assert round_trip.retryable(ConnectionResetError(), 1)
        assert not round_trip.retryable(KeyError(), 1)
    single = StepOptions().changed(retries={"retry_on": OSError, "max_attempts": 2})
    assert single.retryable(FileNotFoundError(), 1)
    assert not single.retryable(ValueError(), 1)


def test_options_that_are_not_given_stay() -> None:
    first = StepOptions().changed(retries=5, backoff="linear", timeout_ms=10, queue="gpu")
    second = first.changed(timeout_ms=20)
    assert (second.max_attempts, second.backoff, second.timeout_ms, second.queue) == (5, "linear", 20, "gpu")


@pytest.mark.parametrize(
    ("given_options", "error", "told"),
    [
        ({"retries": 0}, ValueError, "1 means no second try"),
        ({"retries": True}, TypeError, "retries"),
        ({"retries": "3"}, TypeError, "RetryPolicy"),
        ({"retries": 2.0}, TypeError, "RetryPolicy"),
        ({"retries": {"attempts": 3}}, TypeError, "'attempts'.*max_attempts"),
        ({"backoff": "quadratic"}, ValueError, "'exponential', 'linear' or 'constant'"),
        ({"backoff": 2}, TypeError, "BackoffPolicy"),
        ({"backoff": {"type": "linear", "factor": 2}}, TypeError, "'factor'"),
        ({"backoff": {"multiplier": float("nan")}}, ValueError, "multiplier"),
        ({"backoff": {"multiplier": 0.5}}, ValueError, "multiplier"),
        ({"timeout_ms": 0}, ValueError, "timeout_ms"),
        ({"timeout_ms": 1.5}, TypeError, "timeout_ms"),
        ({"timeout_ms": sys.maxsize}, ValueError, "timeout_ms"),
        ({"queue": ""}, ValueError, "queue"),
        ({"queue": "a b"}, ValueError, "queue"),
        ({"queue": 3}, TypeError, "queue"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_where_it_is_written(given_options: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        StepOptions().changed(**given_options)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"max_attempts": None},
        {"initial_interval_ms": -1},
        {"initial_interval_ms": sys.maxsize},
        {"max_interval_ms": sys.maxsize},
        {"retry_on": "ValueError"},
        {"retry_on": [int]},
    ],
    ids=str,
)
def test_a_wrong_retry_policy_is_refused(fields: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(fields))):
        RetryPolicy(**fields)
