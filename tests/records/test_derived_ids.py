"""IDs that are derived find what earlier releases have written under them.

An idempotency key, the due time of a schedule, a parent that asks for its child again:
each finds its run by an ID that is worked out anew. Derived in another way, it would start the run twice; and what is
kept under a session's or user's key would not be found. So these are literals, from the first versions of the rules.
"""

from __future__ import annotations

import pytest

from agnt5.replay.children import child_run_id
from agnt5.types import CronTrigger, EveryTrigger, cron, every
from agnt5_engine.ports import StartRequest
from agnt5_engine.records.routing import partition_of, session_key, user_key
from agnt5_engine.runs.schedules import Schedule, _spec, request
from agnt5_engine.serving.local import request_run_id


@pytest.mark.parametrize(
    ("session", "run_id"),
    [(None, "qc3oyjzs64xuaunemup33gkjt5"), ("cart-7", "svt2zlzjjq6nullomlwrn.qc3oyjzs64xuaunemup33gkjt5")],
)
def test_a_key_that_was_given_to_an_earlier_release_finds_its_run(session: str | None, run_id: str) -> None:
    asked = StartRequest(workflow="pay", input=b"{}", trigger={"kind": "http"}, session_id=session, dedupe="key")
    assert request_run_id(asked) == run_id


def test_the_state_that_an_earlier_release_has_kept_is_where_its_session_and_user_lead() -> None:
    assert session_key("cart-7") == "svt2zlzjjq6nullomlwrn"
    assert user_key("ann") == "ujgiv4dl5jnac4max2ail"
    assert [partition_of(key, 8) for key in ("abc", "s.one", "order-42")] == [3, 0, 0]


def test_a_child_that_an_earlier_release_has_started_is_the_one_that_its_parent_asks_for_again() -> None:
    unique = "qd3kcdywh4kc46zxacra6vav33"
    assert child_run_id("run.one", "2/0", None, None) == f"run.{unique}"
    assert child_run_id("run.one", "2/0", None, "cart-7") == f"svt2zlzjjq6nullomlwrn.{unique}"
    assert child_run_id("run.one", "2/0", "kid-1", None) == "kid-1"
    assert child_run_id("run.one", "2/0", "kid-1", "cart-7") == "svt2zlzjjq6nullomlwrn.kid-1"


@pytest.mark.parametrize(
    ("trigger", "spec"),
    [
        (cron("0 9 * * *", timezone="Europe/Berlin"), "cron 0 9 * * * Europe/Berlin"),
        (every(5), "every 5000 ms"),
    ],
)
def test_a_time_table_that_an_earlier_release_has_begun_goes_on(trigger: CronTrigger | EveryTrigger, spec: str) -> None:
    assert _spec(trigger) == spec
    due = 1_700_000_000_000
    assert request(Schedule("cabc", "w", trigger, False), due, 1).run_id == "ep3mvuzfyrvcrnm2yrpffjtqqv"
