"""Starting runs over HTTP, and waiting for them."""

from __future__ import annotations

from tests.gateway.conftest import Processor


async def test_run_answers_with_the_finished_run(one: Processor) -> None:
    answer = await one.http.post("/v1/workflows/double/run", json={"number": 21})
    assert answer.status_code == 200
    run = answer.json()
    assert (run["status"], run["output"], run["workflow"]) == ("completed", 42, "double")
    assert run["trigger"]["kind"] == "http"
    assert run["created_at"].endswith("Z")


async def test_a_failed_run_is_an_answer_not_an_error(one: Processor) -> None:
    answer = await one.http.post("/v1/workflows/fails/run")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"]["type"] == "ValueError"


async def test_run_that_takes_longer_than_its_timeout_says_where_to_look(one: Processor) -> None:
    answer = await one.http.post("/v1/workflows/signalled/run?timeout=0.01", json={})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/runs/{body['run_id']}"
    assert body["status"] == "running"
    assert (await one.http.get(answer.headers["location"])).json()["waiting_on"][0]["kind"] == "signal"
    assert (await one.http.get(f"/v1/result/{body['run_id']}")).status_code == 202


async def test_the_same_key_and_input_is_the_same_run(one: Processor) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = (await one.http.post("/v1/workflows/double/submit", json={"number": 1}, headers=headers)).json()
    again = (await one.http.post("/v1/workflows/double/submit", json={"number": 1}, headers=headers)).json()
    assert (first["existing"], again["existing"]) == (False, True)
    assert first["run_id"] == again["run_id"]
    assert one.engine.starts == 1


async def test_the_same_key_with_other_input_is_a_conflict(one: Processor) -> None:
    headers = {"Idempotency-Key": "order-1"}
    await one.http.post("/v1/workflows/double/submit", json={"number": 1}, headers=headers)
    answer = await one.http.post("/v1/workflows/double/submit", json={"number": 2}, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:agnt5:problem:conflict"


async def test_the_same_key_in_another_session_or_workflow_is_another_run(one: Processor) -> None:
    ids = set()
    for path, session in (("nothing", "a"), ("nothing", "b"), ("signalled", "a")):
        headers = {"Idempotency-Key": "k", "X-Session-ID": session}
        ids.add((await one.http.post(f"/v1/workflows/{path}/submit", json={}, headers=headers)).json()["run_id"])
    assert len(ids) == 3


async def test_stream_starts_a_run_and_brings_its_events_until_the_end(one: Processor) -> None:
    answer = await one.http.post("/v1/workflows/double/stream", json={"number": 2})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    assert [line[7:] for line in lines if line.startswith("event: ")] == [
        "run.started",
        "workflow.step.started",
        "workflow.step.completed",
        "run.completed",
    ]
    assert [line for line in lines if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3", "id: 4"]
