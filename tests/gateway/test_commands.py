"""Answers, signals, cancelling and retrying: accepted once, refused with the reason."""

from __future__ import annotations

import asyncio

from tests.gateway.conftest import Processor


async def submit(one: Processor, workflow: str, **inputs: object) -> str:
    run_id: str = (await one.http.post(f"/v1/workflows/{workflow}/submit", json=inputs)).json()["run_id"]
    return run_id


async def answer(one: Processor, run_id: str, body: object, **headers: str) -> tuple[int, dict[str, object]]:
    reply = await one.http.post(f"/v1/workflows/resume/{run_id}", json=body, headers=headers)
    return reply.status_code, reply.json()


async def test_an_answer_resumes_the_run_and_the_history_shows_who_gave_it(one: Processor) -> None:
    run_id = await submit(one, "approval_workflow", order_id="7")
    [asked] = (await one.http.get("/v1/approvals")).json()["items"]
    assert (asked["run_id"], asked["question"], asked["input_type"]) == (run_id, "Approve 7?", "approval")
    status, _ = await answer(one, run_id, {"user_response": "approve"}, **{"X-User-ID": "ada"})
    assert status == 200
    run = (await one.http.get(f"/v1/runs/{run_id}?timeout=5")).json()
    assert run["output"] == {"decision": "approve"}
    events = (await one.http.get(f"/v1/runs/{run_id}/events")).json()["items"]
    assert [event["data"]["user_id"] for event in events if event["type"] == "approval.resolved"] == ["ada"]
    assert (await one.http.get("/v1/approvals")).json() == {"items": [], "next_cursor": None}


async def test_an_answer_that_is_no_option_is_refused_with_the_options(one: Processor) -> None:
    run_id = await submit(one, "approval_workflow", order_id="7")
    status, body = await answer(one, run_id, {"user_response": "maybe"})
    assert (status, body["options"]) == (422, ["approve", "reject"])
    assert (await one.http.get(f"/v1/status/{run_id}")).json()["status"] == "awaiting_user_input"


async def test_the_second_of_two_answers_learns_the_first(one: Processor) -> None:
    run_id = await submit(one, "approval_workflow", order_id="7")
    replies = await asyncio.gather(
        answer(one, run_id, {"user_response": "approve", "entry": "0"}),
        answer(one, run_id, {"user_response": "reject", "entry": "0"}),
    )
    assert sorted(status for status, _ in replies) == [200, 409]
    [lost] = [body for status, body in replies if status == 409]
    assert lost["answer"] == {"entry": "0", "response": "approve"}


async def test_of_several_questions_one_has_to_be_named(one: Processor) -> None:
    run_id = await submit(one, "two_questions")
    status, body = await answer(one, run_id, {"user_response": "approve"})
    assert (status, body["entries"]) == (409, ["0", "1"])
    assert (await answer(one, run_id, {"user_response": "approve", "entry": "0"}))[0] == 200
    assert (await answer(one, run_id, {"user_response": None, "entry": "1"}))[0] == 200
    assert (await one.http.get(f"/v1/result/{run_id}?timeout=5")).json()["output"] == ["approve", None]


async def test_a_signal_may_have_a_slash_in_its_name(one: Processor) -> None:
    run_id = await submit(one, "two_signals")
    for name in ("order%2Fpaid", "order/shipped"):
        assert (await one.http.post(f"/v1/runs/{run_id}/signals/{name}", json={"payload": name})).status_code == 202
    assert (await one.http.get(f"/v1/result/{run_id}?timeout=5")).json()["output"] == ["order%2Fpaid", "order/shipped"]


async def test_an_answer_without_user_response_or_with_more_than_that_is_refused(one: Processor) -> None:
    run_id = await submit(one, "approval_workflow", order_id="7")
    for body in ({}, {"response": "approve"}, {"user_response": "approve", "extra": 1}, [], "approve"):
        status, document = await answer(one, run_id, body)
        assert (status, document["type"]) == (422, "urn:agnt5:problem:invalid")


async def test_signals_arrive_in_order_and_one_id_counts_once(one: Processor) -> None:
    run_id = await submit(one, "signalled")
    for payload, signal_id in ((1, "a"), (1, "a"), (2, "b")):
        reply = await one.http.post(f"/v1/runs/{run_id}/signals/go", json={"payload": payload, "id": signal_id})
        assert reply.status_code == 202
    assert (await one.http.get(f"/v1/result/{run_id}?timeout=5")).json()["output"] == [1, 2]
    late = await one.http.post(f"/v1/runs/{run_id}/signals/go", json={"payload": 3})
    assert late.status_code == 409
    again = await one.http.post(f"/v1/runs/{run_id}/signals/go", json={"payload": 2, "id": "b"})
    assert again.status_code == 202


async def test_cancel_ends_a_waiting_run_and_refuses_an_ended_one(one: Processor) -> None:
    run_id = await submit(one, "signalled")
    assert (await one.http.post(f"/v1/runs/{run_id}/cancel")).status_code == 202
    assert (await one.http.get(f"/v1/result/{run_id}?timeout=5")).json()["status"] == "cancelled"
    assert (await one.http.post(f"/v1/runs/{run_id}/cancel?force=1")).status_code == 409


async def test_retry_goes_on_with_a_failed_run_only(one: Processor) -> None:
    failed = await submit(one, "fails")
    await one.http.get(f"/v1/runs/{failed}?timeout=5")
    assert (await one.http.post(f"/v1/runs/{failed}/retry")).status_code == 202
    waiting = await submit(one, "signalled")
    assert (await one.http.post(f"/v1/runs/{waiting}/retry")).status_code == 409


async def test_whoever_waits_for_a_run_that_is_parked_gets_it(one: Processor) -> None:
    waiting = asyncio.create_task(one.http.post("/v1/workflows/signalled/run", json={}))
    while not one.engine.cluster.runs:
        await asyncio.sleep(0.01)
    next(iter(one.engine.cluster.runs.values())).park("non_determinism")
    run = (await waiting).json()
    assert (run["status"], run["pause"]["reason"]) == ("paused", "non_determinism")


async def test_an_event_is_published_with_its_id_and_starts_one_run_for_it(one: Processor) -> None:
    body = {"event_name": "user.signed_up", "payload": {"user_id": "u1"}, "event_id": "e1", "key": "k"}
    first = await one.http.post("/v1/events", json=body)
    assert first.json() == {"topic": "user.signed_up", "partition": 0, "offset": 0}
    await one.http.post("/v1/events", json=body)
    assert one.engine.cluster.topics["user.signed_up"][0] == (
        b"k",
        b'{"user_id":"u1"}',
        (("agnt5-event-id", b"e1"),),
    )
    assert len((await one.http.get("/v1/runs?workflow=welcome")).json()["items"]) == 1


async def test_nobody_publishes_to_the_engines_own_topics(one: Processor) -> None:
    for topic in ("agnt5.journal", "agnt5.dead-letters", "bad topic", "..", "", "no.such.topic", "é"):
        reply = await one.http.post("/v1/events", json={"event_name": topic, "payload": {}})
        assert reply.status_code == 422, topic
    assert one.engine.cluster.topics == {}
