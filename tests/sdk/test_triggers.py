from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5 import InputError
from agnt5.types import Envelope, cron, event, every, webhook


def ms(*parts: int, zone: str = "UTC") -> int:
    return int(datetime(*parts, tzinfo=ZoneInfo(zone)).timestamp() * 1000)  # type: ignore[misc,arg-type]


def test_a_session_is_found_by_a_fields_name_or_a_callable() -> None:
    value = {"customer_id": 7, "customer": {"id": "c1"}, "a.b": "dotted", "none": None}
    assert event("t").session_id(value) is None
    assert event("t", session="customer_id").session_id(value) == "7"
    assert event("t", session="customer.id").session_id(value) == "c1"
    assert event("t", session="a.b").session_id(value) == "dotted"
    assert event("t", session=lambda v: v["customer"]["id"].upper()).session_id(value) == "C1"
    assert event("t", session=lambda v: None).session_id(value) is None
    assert event("t", user="customer.id").user_id(value) == "c1"


@pytest.mark.parametrize("field", ["missing", "none", "customer", "customer.missing", "flag", "empty"])
def test_an_event_that_does_not_name_its_session_is_refused_naming_the_field(field: str) -> None:
    value: dict[str, Any] = {"none": None, "customer": {}, "flag": True, "empty": ""}
    with pytest.raises(InputError) as refused:
        event("t", session=field).session_id(value)
    assert list(refused.value.fields) == [field]
    with pytest.raises(InputError):
        event("t", session=field).session_id("no object")


def test_a_value_is_accepted_when_the_filter_says_so_or_there_is_none() -> None:
    spec = event("t", filter=lambda v: v["total"] > 10)
    assert spec.accepts({"total": 11})
    assert not spec.accepts({"total": 1})
    assert event("t").accepts(None)


wrong_event: Any = event
wrong_webhook: Any = webhook
wrong_cron: Any = cron
wrong_every: Any = every


async def unready(value: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: wrong_event(""), ValueError, "topic"),
        (lambda: wrong_event("a b"), ValueError, "topic 'a b'"),
        (lambda: wrong_event(".."), ValueError, "topic"),
        (lambda: wrong_event("x" * 250), ValueError, "249"),
        (lambda: wrong_event(3), TypeError, "topic"),
        (lambda: wrong_event("t", filter="x"), TypeError, "filter"),
        (lambda: wrong_event("t", filter=unready), TypeError, "await"),
        (lambda: wrong_event("t", session=3), TypeError, "session"),
        (lambda: wrong_event("t", user=""), ValueError, "user"),
        (lambda: wrong_webhook("Stripe"), ValueError, "/v1/webhooks/stripe"),
        (lambda: wrong_webhook(None), TypeError, "source"),
        (lambda: wrong_webhook("stripe", event=""), ValueError, "event"),
        (lambda: wrong_cron("* * * *"), ValueError, "4 fields"),
        (lambda: wrong_cron("* * * * * *"), ValueError, "every"),
        (lambda: wrong_cron("@daily"), ValueError, "five"),
        (lambda: wrong_cron("61 * * * *"), ValueError, "minute"),
        (lambda: wrong_cron("0 0 30 2 *"), ValueError, "day"),
        (lambda: wrong_cron(5), TypeError, "cron"),
        (lambda: wrong_cron("0 0 * * *", timezone="Mars/Base"), ValueError, "Mars/Base"),
        (lambda: wrong_cron("0 0 * * *", timezone="../etc/passwd"), ValueError, "time zone"),
        (lambda: wrong_cron("0 0 * * *", timezone=None), TypeError, "timezone"),
        (lambda: wrong_cron("0 0 * * *", overlap="maybe"), ValueError, "overlap.*'queue'"),
        (lambda: wrong_cron("0 0 * * *", catch_up="none"), ValueError, "catch_up.*'all'"),
        (lambda: wrong_every(0), ValueError, "greater than 0"),
        (lambda: wrong_every(-1), ValueError, "greater than 0"),
        (lambda: wrong_every(float("inf")), ValueError, "greater than 0"),
        (lambda: wrong_every(sys.maxsize), ValueError, "thousand years"),
        (lambda: wrong_every(True), TypeError, "seconds"),
        (lambda: wrong_every("5"), TypeError, "seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trigger_that_cannot_work_is_refused_where_it_is_written(
    make: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        make()


def test_cron_keeps_local_time_across_the_change_of_clocks() -> None:
    nine = cron("0 9 * * *", "Europe/Berlin")
    before = ms(2026, 3, 28, 12, zone="Europe/Berlin")  # clocks go forward in the next night
    first = nine.after(before)
    assert first == ms(2026, 3, 29, 9, zone="Europe/Berlin")
    assert first - ms(2026, 3, 28, 9, zone="Europe/Berlin") == 23 * 3_600_000


def test_a_due_time_that_the_change_of_clocks_skips_or_repeats_comes_once_a_day() -> None:
    for start in (ms(2026, 3, 27, 12), ms(2026, 10, 23, 12)):
        spec, moment, days = cron("30 2 * * *", "Europe/Berlin"), start, []
        for _ in range(4):
            moment = spec.after(moment)
            days.append(datetime.fromtimestamp(moment / 1000, ZoneInfo("Europe/Berlin")).date())
        assert [later - earlier for earlier, later in pairwise(days)] == [timedelta(days=1)] * 3


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 9 * * MON-FRI", "0 0 1 * *", "15 3 29 2 *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York"]),
)
def test_the_next_due_time_is_later_and_lies_on_a_minute(moment: datetime, expr: str, zone: str) -> None:
    spec = cron(expr, zone)
    now = int(moment.timestamp() * 1000)
    due = spec.after(now)
    assert due > now
    assert due % 60_000 == 0
    assert spec.after(due - 1) == due


@given(st.integers(0, 10**13), st.integers(1, 10**9))
def test_every_processor_means_the_same_moments(now: int, interval: int) -> None:
    spec = every(timedelta(milliseconds=interval))
    due = spec.after(now)
    assert now < due <= now + interval
    assert due % interval == 0
    assert spec.after(due - 1) == due


def test_a_webhooks_fields_are_its_body_and_for_stripe_its_object() -> None:
    body = {"type": "payment_intent.succeeded", "data": {"object": {"amount": 5, "currency": "eur"}}}
    assert webhook("stripe").fields(body) == {"amount": 5, "currency": "eur"}
    assert webhook("github").fields(body) == body
    assert webhook("stripe").fields({"data": 1}) == {"data": 1}
    assert webhook("stripe", event="a").accepts("a")
    assert not webhook("stripe", event="a").accepts("b")
    assert webhook("stripe").accepts(None)


def test_triggers_that_say_the_same_are_equal_and_cannot_be_changed() -> None:
    assert event("t", session="a") == event("t", session="a")
    assert len({cron("0  9 * * *"), cron("0 9 * * *"), every(5), every(timedelta(seconds=5)), webhook("a")}) == 3
    with pytest.raises(AttributeError):
        event("t").topic = "u"  # type: ignore[misc]


def test_an_envelope_survives_its_way_through_the_log() -> None:
    envelope = Envelope("t", 1, 2, None, {"a": "b"}, 3, {"v": [1, None]})
    assert Envelope.from_json(envelope.to_json()) == envelope
