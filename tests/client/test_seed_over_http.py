"""The seed page's examples driven over plain HTTP, as a new user would with curl."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.client.backends import RealProcessor

FLOWS = Path(__file__).with_name("seed_flows.py")


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("seed")
    processor = RealProcessor(
        folder, "processor", f"embedded://{folder / 'data'}", flows=FLOWS, AGNT5_WEBHOOK_STRIPE_SECRET="whsec_test"
    )
    processor.start()
    processor.await_whole(8)
    with httpx.Client(base_url=processor.url, trust_env=False, timeout=30) as client:
        yield client
    processor.end(signal.SIGTERM)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_person_approves_an_order(http: httpx.Client) -> None:
    started = http.post("/v1/workflows/approval_workflow/submit", json={"order_id": "A-1"})
    assert started.status_code == 202
    run_id = started.json()["run_id"]
    [asked] = until(lambda: http.get("/v1/approvals").json()["items"])
    assert (asked["run_id"], asked["question"]) == (run_id, "Approve this order?\n\norder A-1: 2 books")
    assert [option["label"] for option in asked["options"]] == ["Approve", "Reject"]
    wrong = http.post(f"/v1/workflows/resume/{run_id}", json={"user_response": "maybe"})
    assert (wrong.status_code, wrong.json()["options"]) == (422, ["approve", "reject"])
    right = http.post(f"/v1/workflows/resume/{run_id}", json={"user_response": "approve"}, headers={"X-User-ID": "ada"})
    assert right.status_code == 200
    result = http.get(f"/v1/result/{run_id}?timeout=10")
    assert result.json()["output"] == {"status": "fulfilled", "order_id": "A-1"}
    late = http.post(f"/v1/workflows/resume/{run_id}", json={"user_response": "reject"})
    assert late.status_code == 409
    resolved = [
        one for one in http.get(f"/v1/runs/{run_id}/events").json()["items"] if one["type"] == "approval.resolved"
    ]
    assert len(resolved) == 1
    assert "ada" in json.dumps(resolved[0]["data"])


def test_a_payment_arrives_by_webhook_once(http: httpx.Client) -> None:
    event = {
        "id": "evt_42",
        "type": "payment_intent.succeeded",
        "data": {"object": {"id": "pi_1", "object": "payment_intent", "amount": 2000, "currency": "eur"}},
    }
    body = json.dumps(event)

    def deliver(secret: str = "whsec_test") -> httpx.Response:
        stamp = int(time.time())
        signature = hmac.new(secret.encode(), f"{stamp}.{body}".encode(), hashlib.sha256).hexdigest()
        headers = {"Stripe-Signature": f"t={stamp},v1={signature}", "content-type": "application/json"}
        return http.post("/v1/webhooks/stripe", content=body, headers=headers)

    first = deliver()
    assert first.status_code == 202
    [run_id] = first.json()["runs"]
    run = http.get(f"/v1/runs/{run_id}?timeout=10").json()
    assert (run["output"], run["input"]) == ("Payment recorded.", {"amount": 2000, "currency": "eur"})
    assert run["trigger"]["kind"] == "webhook"
    assert deliver().json() == first.json()
    assert deliver("another").status_code == 401


def test_a_session_counts_its_visits(http: httpx.Client) -> None:
    def visit(session: str) -> int:
        answer = http.post(
            "/v1/workflows/stateful_workflow/run", json={"user_id": "u"}, headers={"X-Session-ID": session}
        )
        visits: int = answer.json()["output"]["visits"]
        return visits

    assert [visit("s1"), visit("s1"), visit("s2"), visit("s1")] == [1, 2, 1, 3]


def test_a_sleeping_run_says_until_when_and_goes_on(http: httpx.Client) -> None:
    early = http.post("/v1/workflows/follow_up_workflow/run?timeout=0.1", json={"user_id": "u"})
    assert early.status_code == 202
    run = http.get(early.headers["location"]).json()
    if run["status"] == "running":
        [wait] = run["waiting_on"]
        assert (wait["kind"], wait["name"]) == ("sleep", "wait_24h")
        assert wait["until"] > run["created_at"]
    assert http.get(f"{early.headers['location']}?timeout=10").json()["output"] == "Follow-up sent."


def test_a_schedule_starts_runs_by_itself(http: httpx.Client) -> None:
    runs = until(lambda: http.get("/v1/runs?workflow=tick&status=completed").json()["items"])
    assert runs[0]["trigger"]["kind"] == "cron"
    assert runs[0]["output"] == "tock"


def test_a_bad_request_starts_nothing_and_is_told_field_by_field(http: httpx.Client) -> None:
    answer = http.post("/v1/workflows/payment_workflow/run", json={"amount": "much", "colour": "red"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert {fault["field"] for fault in answer.json()["errors"]} == {"amount", "currency", "colour"}
    near = http.post("/v1/workflows/payment_workflo/run", json={})
    assert (near.status_code, near.json()["near"][0]) == (404, "payment_workflow")
