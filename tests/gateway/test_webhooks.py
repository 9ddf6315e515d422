"""Webhooks: only genuine ones, once each, to whoever wants them.

The GitHub vector is the one of its documentation, Slack's that of its; Standard Webhooks are signed by its library, and
Stripe's by the formula it documents.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import time_machine
from standardwebhooks import Webhook

from agnt5_engine.gateway.signatures import ForgedError, github, slack, stripe
from tests.gateway.conftest import MakeGroup, Processor

SHOP = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STRIPE = {
    "id": "evt_1",
    "type": "payment_intent.succeeded",
    "data": {"object": {"id": "pi_1", "amount": 1200, "currency": "eur"}},
}


@pytest.fixture
def hooked(make_group: MakeGroup) -> Processor:
    secrets = {"stripe": "whsec_new,whsec_old", "github": "gh", "slack": "sl", "my_shop": SHOP, "lonely": "l"}
    return make_group(webhook_secrets=secrets).processors[0]


def signed(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def stripe_headers(body: str, secret: str = "whsec_new", at: float | None = None) -> dict[str, str]:
    stamp = int(time.time() if at is None else at)
    return {"Stripe-Signature": f"t={stamp},v1={signed(secret, f'{stamp}.{body}')},v0=00"}


def github_headers(body: str, event: str, delivery: str = "d1") -> dict[str, str]:
    return {
        "X-Hub-Signature-256": f"sha256={signed('gh', body)}",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "content-type": "application/json",
    }


def slack_headers(body: str, at: float | None = None) -> dict[str, str]:
    stamp = int(time.time() if at is None else at)
    return {"X-Slack-Signature": f"v0={signed('sl', f'v0:{stamp}:{body}')}", "X-Slack-Request-Timestamp": str(stamp)}


def shop_headers(body: str, message: str = "msg_1", at: datetime | None = None) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(SHOP).sign(message, at, body),
    }


async def inputs_of(processor: Processor, runs: list[str]) -> dict[str, Any]:
    found = {}
    for run_id in runs:
        run = (await processor.http.get(f"/v1/runs/{run_id}")).json()
        found[run["workflow"]] = run["input"]
    return found


async def test_stripe_starts_every_workflow_that_wants_it_from_the_nested_object(hooked: Processor) -> None:
    body = json.dumps(STRIPE)
    answer = await hooked.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
    assert answer.status_code == 202
    assert await inputs_of(hooked, answer.json()["runs"]) == {
        "payment_workflow": {"amount": 1200, "currency": "eur"},
        "ledger": {"amount": 1200},
    }


async def test_a_delivery_that_comes_again_starts_nothing_new(hooked: Processor) -> None:
    body = json.dumps(STRIPE)
    first = await hooked.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
    again = await hooked.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body, "whsec_old"))
    assert first.json() == again.json()
    assert hooked.engine.starts == 2


async def test_a_type_nobody_wants_is_accepted_and_starts_nothing(hooked: Processor) -> None:
    body = json.dumps({"type": "order.refunded", "data": {}})
    answer = await hooked.http.post("/v1/webhooks/my-shop", content=body, headers=shop_headers(body))
    assert (answer.status_code, answer.json()) == (202, {"runs": []})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Stripe-Signature": ""},
        {"Stripe-Signature": "t=,v1="},
        {"Stripe-Signature": "v1=abc"},
        {"Stripe-Signature": "t=1,t=2,v1=00"},
        {"Stripe-Signature": f"t={10**30},v1=00"},
        {"Stripe-Signature": f"t={int(time.time())},v1=zz"},
        stripe_headers(json.dumps(STRIPE), "wrong"),
        stripe_headers(json.dumps(STRIPE) + " "),
        stripe_headers(json.dumps(STRIPE), at=time.time() - 400),
        stripe_headers(json.dumps(STRIPE), at=time.time() + 4000),
    ],
)
async def test_a_forged_or_replayed_webhook_starts_nothing(hooked: Processor, headers: dict[str, str]) -> None:
    answer = await hooked.http.post("/v1/webhooks/stripe", content=json.dumps(STRIPE), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert "whsec" not in answer.text
    assert hooked.engine.starts == 0


async def test_the_signature_is_over_the_exact_bytes(hooked: Processor) -> None:
    body = json.dumps(STRIPE)
    respaced = json.dumps(STRIPE, separators=(",", ":"))
    answer = await hooked.http.post("/v1/webhooks/stripe", content=respaced, headers=stripe_headers(body))
    assert answer.status_code == 401


def test_githubs_own_example_is_genuine() -> None:
    headers = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    github(b"Hello, World!", headers, ["other", "It's a Secret to Everybody"])
    with pytest.raises(ForgedError):
        github(b"Hello, World", headers, ["It's a Secret to Everybody"])


def test_slacks_own_example_is_genuine_in_its_five_minutes() -> None:
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    headers = {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    with time_machine.travel(1531420618 + 299, tick=False):
        slack(body, headers, ["8f742231b10e8888abcd99yyyzzz85a5"])
    with time_machine.travel(1531420618 + 301, tick=False), pytest.raises(ForgedError):
        slack(body, headers, ["8f742231b10e8888abcd99yyyzzz85a5"])


def test_stripes_header_may_hold_a_signature_for_each_secret() -> None:
    stamp = int(time.time())
    both = f"t={stamp},v1={'0' * 64},v1={signed('b', f'{stamp}.x')}"
    stripe(b"x", {"stripe-signature": both}, ["a", "b"])


async def test_github_is_known_by_event_and_action_and_deduplicated_by_delivery(hooked: Processor) -> None:
    body = json.dumps({"action": "opened", "number": 5})
    first = await hooked.http.post("/v1/webhooks/github", content=body, headers=github_headers(body, "pull_request"))
    assert await inputs_of(hooked, first.json()["runs"]) == {"on_pull_request": {"number": 5}}
    again = await hooked.http.post("/v1/webhooks/github", content=body, headers=github_headers(body, "pull_request"))
    assert again.json() == first.json()
    new = await hooked.http.post(
        "/v1/webhooks/github", content=body, headers=github_headers(body, "pull_request", "d2")
    )
    assert new.json() != first.json()
    closed = json.dumps({"action": "closed", "number": 5})
    other = await hooked.http.post(
        "/v1/webhooks/github", content=closed, headers=github_headers(closed, "pull_request", "d3")
    )
    assert other.json() == {"runs": []}


async def test_slacks_url_verification_gets_its_challenge_if_it_is_signed(hooked: Processor) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "abc", "token": "t"})
    answer = await hooked.http.post("/v1/webhooks/slack", content=body, headers=slack_headers(body))
    assert (answer.status_code, answer.json()) == (200, {"challenge": "abc"})
    forged = await hooked.http.post("/v1/webhooks/slack", content=body)
    assert forged.status_code == 401


async def test_slacks_events_are_known_by_their_inner_type(hooked: Processor) -> None:
    body = json.dumps({"type": "event_callback", "event_id": "Ev1", "event": {"type": "message", "text": "hi"}})
    answer = await hooked.http.post("/v1/webhooks/slack", content=body, headers=slack_headers(body))
    inputs = await inputs_of(hooked, answer.json()["runs"])
    assert inputs["on_message"]["event"]["text"] == "hi"
    late = await hooked.http.post("/v1/webhooks/slack", content=body, headers=slack_headers(body))
    assert late.json() == answer.json()


async def test_any_other_source_signs_as_standard_webhooks_say(hooked: Processor) -> None:
    body = json.dumps({"type": "order.paid", "data": {"order": 1}})
    answer = await hooked.http.post("/v1/webhooks/my-shop", content=body, headers=shop_headers(body))
    assert await inputs_of(hooked, answer.json()["runs"]) == {"on_shop": {"data": {"order": 1}}}
    again = await hooked.http.post("/v1/webhooks/my-shop", content=body, headers=shop_headers(body))
    assert again.json() == answer.json()
    for headers in (
        shop_headers(body) | {"webhook-id": "msg_2"},
        shop_headers(body) | {"webhook-signature": "v1"},
        shop_headers(body) | {"webhook-timestamp": "x"},
        shop_headers(body, at=datetime.fromtimestamp(time.time() - 400, UTC)),
    ):
        assert (await hooked.http.post("/v1/webhooks/my-shop", content=body, headers=headers)).status_code == 401


async def test_a_source_without_a_scheme_may_sign_generically(hooked: Processor) -> None:
    body = json.dumps({"type": "order.paid", "data": {"order": 2}})
    stamp = int(time.time())
    headers = {"X-Webhook-Signature": f"t={stamp},v1={signed(SHOP, f'{stamp}.{body}')}", "X-Webhook-ID": "g1"}
    answer = await hooked.http.post("/v1/webhooks/my-shop", content=body, headers=headers)
    assert len(answer.json()["runs"]) == 1


async def test_forgeries_under_many_names_are_not_counted_by_name(hooked: Processor) -> None:
    for name in ("my-shop", "my!shop", "my@shop"):  # one secret, and one workflow's source
        assert (await hooked.http.post(f"/v1/webhooks/{name}", content=b"{}")).status_code == 401
    text = (await hooked.http.get("/metrics")).text
    assert 'agnt5_webhooks_total{outcome="forged",source="my-shop"}' in text
    assert 'source="my!shop"' not in text
    assert 'source="my@shop"' not in text


async def test_unknown_sources_and_missing_secrets_are_told_apart(make_group: MakeGroup) -> None:
    bare = make_group().processors[0]
    assert (await bare.http.post("/v1/webhooks/nobody", json={})).status_code == 404
    answer = await bare.http.post("/v1/webhooks/my-shop", json={})
    assert answer.status_code == 503
    assert "AGNT5_WEBHOOK_MY_SHOP_SECRET" in answer.json()["detail"]


async def test_input_that_does_not_bind_starts_none_of_the_workflows(hooked: Processor) -> None:
    wrong = STRIPE | {"data": {"object": {"amount": 1200}}}
    body = json.dumps(wrong)
    answer = await hooked.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
    assert answer.status_code == 422
    assert [fault["field"] for fault in answer.json()["errors"]] == ["currency"]
    assert hooked.engine.starts == 0


async def test_where_keys_are_set_a_signature_is_enough(make_group: MakeGroup) -> None:
    guarded = make_group(webhook_secrets={"stripe": "whsec_new"}, api_keys="k").processors[0]
    body = json.dumps(STRIPE)
    answer = await guarded.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
    assert answer.status_code == 202
    for path in ("stripe", "my-shop", "nobody"):
        assert (await guarded.http.post(f"/v1/webhooks/{path}", content=body)).status_code == 401


async def test_a_webhooks_runs_start_at_their_owners(make_group: MakeGroup) -> None:
    group = make_group("one", "two", webhook_secrets={"stripe": "whsec_new"}, api_keys="k")
    one, two = group.processors
    for number in range(6):
        body = json.dumps(STRIPE | {"id": f"evt_{number}"})
        answer = await one.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
        assert len(answer.json()["runs"]) == 2
        again = await two.http.post("/v1/webhooks/stripe", content=body, headers=stripe_headers(body))
        assert again.json() == answer.json()
    assert one.engine.starts + two.engine.starts == 12
    assert one.engine.starts
    assert two.engine.starts
