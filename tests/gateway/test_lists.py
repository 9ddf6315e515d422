"""Lists cover every partition, and their cursors stay right while things change."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from agnt5.client.models import DeadLetter, at
from tests.gateway.conftest import Group, MakeGroup, Processor


@pytest.fixture
async def filled(make_group: MakeGroup) -> Group:
    group = make_group("one", "two", "three")
    for number in range(25):
        await group.processors[number % 3].http.post("/v1/workflows/double/submit", json={"number": number})
    return group


async def pages(http: httpx.AsyncClient, path: str, limit: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await http.get(f"{path}?limit={limit}{cursor}")).json()
        items += page["items"]
        assert len(page["items"]) <= limit
        if page["next_cursor"] is None:
            return items
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize("limit", [1, 7, 25, 100])
async def test_runs_are_listed_newest_first_each_once(filled: Group, limit: int) -> None:
    one, two, _ = filled.processors
    runs = await pages(one.http, "/v1/runs", limit)
    assert [run["input"]["number"] for run in runs] == list(range(24, -1, -1))
    assert runs == await pages(two.http, "/v1/runs", limit)


async def test_a_cursor_is_not_moved_by_runs_that_begin_meanwhile_or_partitions_that_move(filled: Group) -> None:
    one, two, three = filled.processors
    first = (await one.http.get("/v1/runs?limit=10")).json()
    await two.http.post("/v1/workflows/double/submit", json={"number": 99})
    filled.cluster.leave(three.engine, two.engine)
    rest = (await two.http.get(f"/v1/runs?limit=100&cursor={first['next_cursor']}")).json()
    numbers = [run["input"]["number"] for run in first["items"] + rest["items"]]
    assert numbers == list(range(24, -1, -1))


async def test_runs_are_filtered_before_they_are_cut(filled: Group) -> None:
    one = filled.processors[0]
    await one.http.post("/v1/workflows/fails/submit", headers={"X-Session-ID": "s"})
    for _ in range(3):
        await one.http.get("/v1/runs")
    assert len((await one.http.get("/v1/runs?workflow=fails&limit=1")).json()["items"]) == 1
    assert len((await one.http.get("/v1/runs?status=failed&limit=5")).json()["items"]) == 1
    assert len((await one.http.get("/v1/runs?session_id=s")).json()["items"]) == 1
    assert len((await one.http.get("/v1/runs?status=completed&limit=100")).json()["items"]) == 25


@pytest.mark.parametrize("limit", [2, 100])
async def test_approvals_come_from_every_partition_oldest_first(make_group: MakeGroup, limit: int) -> None:
    group = make_group("one", "two")
    for number in range(9):
        await group.processors[0].http.post("/v1/workflows/approval_workflow/submit", json={"order_id": str(number)})
    asked = [one["question"] for one in await pages(group.processors[1].http, "/v1/approvals", limit)]
    assert asked == [f"Approve {number}?" for number in range(9)]


async def test_events_come_whole_or_in_pages(one: Processor) -> None:
    run_id = (await one.http.post("/v1/workflows/double/run", json={"number": 1})).json()["run_id"]
    whole = (await one.http.get(f"/v1/runs/{run_id}/events")).json()
    assert [event["seq"] for event in whole["items"]] == [1, 2, 3, 4]
    assert whole["next_cursor"] is None
    assert await pages(one.http, f"/v1/runs/{run_id}/events", 3) == whole["items"]


async def test_dead_letters_are_listed_shown_and_redriven(one: Processor) -> None:
    for number in range(5):
        letter = DeadLetter(
            id=f"0-{number}",
            reason="unbound",
            topic="t",
            partition=0,
            offset=number,
            value={"a": number},
            time=at(number),
        )
        one.engine.cluster.letters[letter.id] = letter
    assert [letter["offset"] for letter in await pages(one.http, "/v1/dead-letters", 2)] == [0, 1, 2, 3, 4]
    assert (await one.http.get("/v1/dead-letters/0-3")).json()["value"] == {"a": 3}
    assert (await one.http.post("/v1/dead-letters/0-3/redrive")).json() == {"runs": []}
    for path in ("/v1/dead-letters/0-3", "/v1/dead-letters/nothing"):
        assert (await one.http.get(path)).status_code == 404
    assert (await one.http.post("/v1/dead-letters/0-3/redrive")).status_code == 404


async def test_a_dead_letter_whose_original_is_gone_says_so_when_it_is_redriven(
    one: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def redrive(letter_id: str) -> list[str]:
        raise LookupError("orders/0 no longer holds offset 7, nor does the letter")

    monkeypatch.setattr(one.engine, "redrive", redrive)
    answer = await one.http.post("/v1/dead-letters/0-3/redrive")
    assert answer.status_code == 404
    assert "orders/0 no longer holds offset 7" in answer.json()["detail"]


async def test_workflows_are_listed_with_triggers_and_schema(one: Processor) -> None:
    listed = {flow["name"]: flow for flow in (await one.http.get("/v1/workflows")).json()["items"]}
    assert listed["double"]["input_schema"]["properties"] == {"number": {"type": "integer"}}
    assert listed["welcome"]["triggers"] == [{"kind": "event", "topic": "user.signed_up"}]


async def test_processors_are_listed_with_their_partitions_and_readyz_says_what_is_wrong(make_group: MakeGroup) -> None:
    group = make_group("one", "two")
    one = group.processors[0]
    members = (await one.http.get("/v1/processors")).json()["items"]
    assert [member["started_at"] for member in members] == ["1970-01-01T00:00:00.007000Z"] * len(members), "each told"
    assert [(member["url"], member["partitions"]) for member in members] == [
        ("http://one", [0, 2]),
        ("http://two", [1, 3]),
    ]
    assert (await one.http.get("/healthz")).status_code == 200
    ready = await one.http.get("/readyz")
    assert ready.json() == {
        "ready": True,
        "partitions": [{"partition": 0, "caught_up": True}, {"partition": 2, "caught_up": True}],
        "detail": None,
    }
    one.engine.in_trouble = "the broker does not answer"
    unready = await one.http.get("/readyz")
    assert (unready.status_code, unready.json()["detail"]) == (503, "the broker does not answer")


async def test_metrics_count_requests_by_route(one: Processor) -> None:
    await one.http.get("/v1/runs/abc")
    text = (await one.http.get("/metrics")).text
    assert 'agnt5_http_requests_total{method="GET",route="/v1/runs/{run_id}",status="404"}' in text
