"""Any processor answers for any run: one hop to its owner, and after it when it moves."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from itertools import count

import pytest

from tests.gateway.conftest import Group, MakeGroup, Processor
from tests.gateway.fake_engine import FakeCatalog


@pytest.fixture
def group(make_group: MakeGroup) -> Group:
    return make_group("one", "two")


async def start(processor: Processor, workflow: str = "signalled", **inputs: object) -> str:
    answer = await processor.http.post(f"/v1/workflows/{workflow}/submit", json=inputs)
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def owned_by(group: Group, processor: Processor, **inputs: object) -> str:
    """A new run, started through the first processor, that lives at `processor`."""
    while True:
        run_id = await start(group.processors[0], **inputs)  # type: ignore[arg-type]
        if group.cluster.partition_of(run_id) in processor.engine.owned():
            return run_id


async def test_every_processor_answers_for_every_run(group: Group) -> None:
    one, two = group.processors
    for number in count():
        if number >= 8 and one.engine.starts and two.engine.starts:
            break  # whose a run is, is up to its ID
        answer = await one.http.post("/v1/workflows/double/run", json={"number": number})
        assert answer.json()["output"] == 2 * number
        run_id = answer.json()["run_id"]
        for path in (f"/v1/runs/{run_id}", f"/v1/result/{run_id}", f"/v1/status/{run_id}", f"/v1/runs/{run_id}/events"):
            assert (await one.http.get(path)).json() == (await two.http.get(path)).json()


async def test_commands_reach_the_owner_and_its_refusals_come_back(group: Group) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two, workflow="approval_workflow", order_id="1")
    wrong = await one.http.post(f"/v1/workflows/resume/{run_id}", json={"user_response": "maybe"})
    assert (wrong.status_code, wrong.json()["options"]) == (422, ["approve", "reject"])
    right = await one.http.post(f"/v1/workflows/resume/{run_id}", json={"user_response": "reject"})
    assert right.status_code == 200
    done = await one.http.get(f"/v1/result/{run_id}?timeout=5")
    assert done.json()["output"] == {"decision": "reject"}
    assert (await one.http.post(f"/v1/runs/{run_id}/cancel")).status_code == 409


async def test_an_idempotency_key_means_the_same_run_through_every_processor(group: Group) -> None:
    one, two = group.processors
    for number in range(6):
        headers = {"Idempotency-Key": f"k{number}", "X-Session-ID": f"sitzung-ü-{number}".encode()}
        first = await one.http.post("/v1/workflows/double/run", json={"number": 1}, headers=headers)
        again = await two.http.post("/v1/workflows/double/submit", json={"number": 1}, headers=headers)
        assert (again.json()["run_id"], again.json()["existing"]) == (first.json()["run_id"], True)
        other = await two.http.post("/v1/workflows/double/submit", json={"number": 2}, headers=headers)
        assert other.status_code == 409


async def test_a_waiting_client_follows_a_run_from_owner_to_owner(group: Group) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two)
    waiting = asyncio.create_task(one.http.get(f"/v1/result/{run_id}?timeout=20"))
    await asyncio.sleep(0.05)
    partition = group.cluster.partition_of(run_id)
    group.cluster.move(partition, None)
    await asyncio.sleep(0.3)
    three = group.add("three")
    group.cluster.move(partition, three.engine)
    for number in (1, 2):
        assert (await one.http.post(f"/v1/runs/{run_id}/signals/go", json={"payload": number})).status_code == 202
    answer = await waiting
    assert (answer.status_code, answer.json()["output"]) == (200, [1, 2])


async def test_a_client_that_waits_for_a_run_whose_owner_is_killed_gets_the_result(group: Group) -> None:
    one, two = group.processors
    headers = {"Idempotency-Key": "k"}
    while True:  # a run that lives at `two`, waited for at `one`
        waiting = asyncio.create_task(one.http.post("/v1/workflows/signalled/run", json={}, headers=headers))
        dedupe = f"http:{headers['Idempotency-Key']}"
        while not (found := [run.run_id for run in group.cluster.runs.values() if run.request.dedupe == dedupe]):
            await asyncio.sleep(0.01)
        [run_id] = found
        if group.cluster.partition_of(run_id) in two.engine.owned():
            break
        waiting.cancel()
        headers = {"Idempotency-Key": headers["Idempotency-Key"] + "k"}
    del group.network.hosts["two"]
    group.cluster.leave(two.engine, None)
    await asyncio.sleep(0.3)
    group.cluster.share()
    for number in (1, 2):
        await one.engine.signal(run_id, "go", number, None)
    answer = await waiting
    assert (answer.status_code, answer.json()["output"]) == (200, [1, 2])


async def test_a_stream_goes_on_at_the_next_owner_when_the_last_one_ended_it_and_is_gone(group: Group) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two)
    streaming = asyncio.create_task(one.http.get(f"/v1/runs/{run_id}/events?follow=1"))
    await asyncio.sleep(0.05)
    del group.network.hosts["two"]
    two.app.state.gateway.close()
    await asyncio.sleep(0.3)
    group.cluster.leave(two.engine, one.engine)
    group.cluster.runs[run_id].end("completed")
    assert (await streaming).text.count("event: run.completed") == 1


async def test_a_partition_without_owner_is_503_with_retry_after(group: Group) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two)
    group.cluster.move(group.cluster.partition_of(run_id), None)
    calls = [
        ("GET", f"/v1/runs/{run_id}"),
        ("GET", f"/v1/runs/{run_id}/events?follow=1"),
        ("GET", "/v1/runs"),
        ("GET", "/v1/approvals"),
        ("POST", f"/v1/runs/{run_id}/cancel"),
    ]
    for method, path in calls:
        answer = await one.http.request(method, path)
        assert answer.status_code == 503, path
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"


async def test_an_owner_that_does_not_answer_is_503(group: Group) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two)
    del group.network.hosts["two"]
    for method, path in (("GET", f"/v1/runs/{run_id}"), ("POST", f"/v1/runs/{run_id}/cancel"), ("GET", "/v1/runs")):
        answer = await one.http.request(method, path)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["workflows/welcome/submit", "workflows/welcome/run", "webhooks/my-shop"])
async def test_an_owner_whose_code_lacks_the_workflow_yet_is_503_and_nothing_is_lost(
    make_group: MakeGroup, path: str
) -> None:
    group = make_group("one", webhook_secrets={"my-shop": ["secret"]})
    [new] = group.processors
    names = group.cluster.catalog.workflows
    old = {name: flow for name, flow in names.items() if name not in ("welcome", "on_shop")}
    group.cluster.catalog = FakeCatalog(old)
    group.add("old")
    group.cluster.catalog = FakeCatalog(names)
    statuses = set()
    for number in range(16):
        body = json.dumps({"user_id": "ada"} if "welcome" in path else {"type": "order.paid", "data": {"n": number}})
        signature = hmac.new(b"secret", f"{(stamp := int(time.time()))}.{body}".encode(), "sha256").hexdigest()
        headers = {"x-webhook-signature": f"t={stamp},v1={signature}", "content-type": "application/json"}
        answer = await new.http.post(f"/v1/{path}", content=body, headers=headers)
        statuses.add(answer.status_code)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert "other code" in answer.json()["detail"]
    assert len(statuses) == 2
    assert 503 in statuses
    assert statuses < {200, 202, 503}


async def test_however_many_wait_for_runs_elsewhere_other_requests_reach_their_owner(group: Group) -> None:
    owners = group.processors[0].app.state.gateway.owners
    owners._transport = None  # over real connections
    waiting = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/cancel" in head:
            writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        else:
            waiting += 1
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024) as owner:
        url = f"http://127.0.0.1:{owner.sockets[0].getsockname()[1]}"
        polls = [asyncio.create_task(owners.client.get(f"{url}/v1/runs/a", timeout=60)) for _ in range(600)]
        while waiting < 512:
            await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            assert (await owners.client.post(f"{url}/v1/runs/a/cancel", timeout=60)).status_code == 202
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


async def test_two_processors_that_each_take_the_other_for_the_owner_do_not_loop(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = group.processors
    run_id = await owned_by(group, two)
    real = group.cluster.owner[group.cluster.partition_of(run_id)]
    assert real is two.engine

    async def confused(run_id: str) -> object:
        from agnt5_engine.ports import NotHere

        raise NotHere(0, "http://one")

    monkeypatch.setattr(two.engine, "run", confused)
    group.network.requests.clear()
    answer = await one.http.get(f"/v1/runs/{run_id}")
    assert answer.status_code == 503
    assert [host for host, _ in group.network.requests] == ["two"]


async def test_keys_travel_with_a_forwarded_request(make_group: MakeGroup) -> None:
    group = make_group("one", "two", api_keys="all,read:reader")
    one, _ = group.processors
    ids = set()
    for _ in range(8):
        answer = await one.http.post("/v1/workflows/nothing/submit", headers={"X-API-KEY": "all"})
        ids.add(answer.json()["run_id"])
    for run_id in ids:
        assert (await one.http.get(f"/v1/runs/{run_id}", headers={"X-API-KEY": "reader"})).status_code == 200
    listed = await one.http.get("/v1/runs", headers={"Authorization": "Bearer reader"})
    assert {run["run_id"] for run in listed.json()["items"]} == ids


async def test_a_header_that_comes_twice_means_the_same_wherever_the_run_lives(group: Group) -> None:
    one, two = group.processors
    twice = [("X-User-ID", "ada"), ("X-User-ID", "bob")]
    while not (one.engine.starts > 4 and two.engine.starts > 4):
        answer = await one.http.post("/v1/workflows/nothing/submit", headers=twice)
        assert answer.status_code == 202
    users = {run["user_id"] for run in (await one.http.get("/v1/runs")).json()["items"]}
    assert users == {"ada"}
