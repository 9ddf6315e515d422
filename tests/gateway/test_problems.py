"""Whatever is wrong with a request, the answer is a problem document, nothing was started, and no secret is told."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.gateway.conftest import MakeGroup, Processor

JSON = {"content-type": "application/json"}
RUN = "/v1/workflows/double/run"


def assert_problem(answer: httpx.Response, status: int, word: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:agnt5:problem:{word}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


async def test_an_unknown_workflow_is_named_with_its_neighbours(one: Processor) -> None:
    document = assert_problem(await one.http.post("/v1/workflows/duoble/run", json={}), 404, "unknown-workflow")
    assert document["near"] == ["double"]


async def test_input_that_does_not_bind_names_each_field(one: Processor) -> None:
    document = assert_problem(await one.http.post(RUN, json={"number": "x", "extra": 1}), 422, "invalid")
    assert {fault["field"] for fault in document["errors"]} == {"number", "extra"}
    assert one.engine.starts == 0


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b'{"number": NaN}',
        b'{"number": Infinity}',
        b'{"number": 1e999}',
        b'{"number": 1, "number": 2}',
        b'{"number": {"a": 1, "a": 2}}',
        b'{"number": "\xff"}',
        b'{"number": "\\ud800"}',
        b'{"number": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"number": ' + b"[" * 100_000,
        b"[1]",
        b'"text"',
        b"null",
        b'{"number": 1} {"number": 2}',
        b'{"number": ' + b"9" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_not_strict_json_starts_nothing(one: Processor, body: bytes) -> None:
    assert_problem(await one.http.post(RUN, content=body, headers=JSON), 422, "invalid")
    assert one.engine.starts == 0


async def test_a_body_of_another_type_is_refused_with_the_type_to_send(one: Processor) -> None:
    answer = await one.http.post(RUN, data={"number": "1"})
    document = assert_problem(answer, 415, "wrong-content-type")
    assert "application/json" in document["detail"]
    answer = await one.http.post(RUN, content=b"{}", headers={"content-type": "application/json; charset=latin-1"})
    assert_problem(answer, 415, "wrong-content-type")


async def test_a_body_that_is_too_large_is_refused_declared_or_not(make_group: MakeGroup) -> None:
    one = make_group(max_payload_bytes=1024).processors[0]
    large = b'{"number": "' + b"x" * 2000 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    assert_problem(await one.http.post(RUN, content=large, headers=JSON), 413, "too-large")
    assert_problem(await one.http.post(RUN, content=chunks(), headers=JSON), 413, "too-large")
    event = {"event_name": "t", "payload": "x" * 1100}
    assert_problem(await one.http.post("/v1/events", json=event), 413, "too-large")
    assert one.engine.starts == 0


async def test_headers_that_are_too_large_are_refused(one: Processor) -> None:
    answer = await one.http.post(RUN, json={"number": 1}, headers={"x-large": "x" * 40_000})
    assert_problem(answer, 431, "headers-too-large")
    answer = await one.http.post(RUN, json={"number": 1}, headers=[(f"x-{number}", "1") for number in range(150)])
    assert_problem(answer, 431, "headers-too-large")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/runs?colour=red", "query.colour"),
        ("/v1/runs?limit=1&limit=2", "query.limit"),
        ("/v1/runs?limit=0", "query.limit"),
        ("/v1/runs?limit=many", "query.limit"),
        ("/v1/runs?status=sleeping", "query.status"),
        ("/v1/runs?cursor=nonsense", "query.cursor"),
        ("/v1/approvals?cursor=W10", "query.cursor"),
    ],
)
async def test_a_query_parameter_that_is_unknown_or_wrong_is_named(one: Processor, path: str, field: str) -> None:
    document = assert_problem(await one.http.get(path), 422, "invalid")
    assert [fault["field"] for fault in document["errors"]] == [field]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", "1e9"])
async def test_a_timeout_that_is_no_time_starts_nothing(one: Processor, value: str) -> None:
    assert_problem(await one.http.post(f"{RUN}?timeout={value}", json={"number": 1}), 422, "invalid")
    assert one.engine.starts == 0


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Session-ID", "X-User-ID"])
@pytest.mark.parametrize("value", ["", "x" * 300, b"\xff", "a\tb"])
async def test_a_name_in_a_header_that_is_no_name_starts_nothing(one: Processor, header: str, value: Any) -> None:
    answer = await one.http.post(RUN, json={"number": 1}, headers=[(header.encode(), value)])  # type: ignore[list-item]
    assert_problem(answer, 422, "invalid")
    assert one.engine.starts == 0


async def test_unknown_paths_and_methods_are_answered_with_problem_documents(one: Processor) -> None:
    assert_problem(await one.http.get("/v2/runs"), 404, "no-such-path")
    assert_problem(await one.http.get("/v1/runs/"), 404, "no-such-path")
    answer = await one.http.delete("/v1/runs")
    assert_problem(answer, 405, "method-not-allowed")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("run_id", ["unknown", "UPPER", "a%20b", "x" * 300, "..%2F..%2Fetc", "%00"])
@pytest.mark.parametrize(
    "path", ["/v1/runs/{}", "/v1/status/{}", "/v1/result/{}", "/v1/runs/{}/events", "/v1/runs/{}/state"]
)
async def test_an_unknown_run_is_not_found(one: Processor, path: str, run_id: str) -> None:
    answer = await one.http.get(path.format(run_id))
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_commands_for_an_unknown_run_are_not_found(one: Processor) -> None:
    for path in ("/v1/runs/no/cancel", "/v1/runs/no/retry", "/v1/runs/no/signals/go"):
        assert_problem(await one.http.post(path), 404, "unknown-run")
    answer = await one.http.post("/v1/workflows/resume/no", json={"user_response": "x"})
    assert_problem(answer, 404, "unknown-run")


async def test_an_unexpected_failure_tells_the_log_and_not_the_client(
    one: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(run_id: str) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(one.engine, "run", broken)
    with capture_logs() as logs:
        answer = await one.http.get("/v1/runs/abc")
    assert_problem(answer, 500, "internal")
    assert "hunter2" not in answer.text
    assert [(entry["event"], entry["route"]) for entry in logs] == [("http.failed", "/v1/runs/{run_id}")]
