"""Who may do what: API keys, their scopes, and web pages of other sites."""

from __future__ import annotations

import hashlib

import pytest

from tests.gateway.conftest import MakeGroup, Processor

KEYS = f"all-of-it,schlüssel,sha256:{hashlib.sha256(b'hashed').hexdigest()},read:reader,start:starter,answer:answerer"


@pytest.fixture
def guarded(make_group: MakeGroup) -> Processor:
    return make_group(api_keys=KEYS).processors[0]


async def test_without_a_key_nothing_but_probes_and_static_files_is_answered(guarded: Processor) -> None:
    document = (await guarded.http.get("/openapi.json", headers={"X-API-KEY": "all-of-it"})).json()
    assert len(document["paths"]) >= 20
    for path, operations in document["paths"].items():
        for method in operations:
            answer = await guarded.http.request(method, path.replace("{", "").replace("}", ""))
            if path in ("/healthz", "/readyz"):
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"]
                assert answer.json()["status"] == 401
    for path in ("/v1/nothing", "/docs", "/openapi.json"):
        assert (await guarded.http.get(path)).status_code == 401
    assert (await guarded.http.get("/")).status_code == 200


async def test_monitors_may_ask_with_head_as_with_get(guarded: Processor) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await guarded.http.head(path)).status_code == 200


@pytest.mark.parametrize("key", ["all-of-it", "hashed", "schlüssel"])
async def test_every_key_works_in_both_headers(guarded: Processor, key: str) -> None:
    for header, value in (("X-API-KEY", key), ("Authorization", f"Bearer {key}"), ("Authorization", f"bearer {key}")):
        answer = await guarded.http.get("/v1/workflows", headers=[(header.encode(), value.encode())])
        assert answer.status_code == 200


@pytest.mark.parametrize("key", ["", "wrong", "all-of-i", "all-of-it ,", hashlib.sha256(b"hashed").hexdigest(), "é"])
async def test_what_is_no_key_is_refused(guarded: Processor, key: str) -> None:
    answer = await guarded.http.get("/v1/workflows", headers=[(b"x-api-key", key.encode())])
    assert answer.status_code == 401
    assert not key or key not in answer.text


async def test_a_key_does_what_its_scopes_say_and_no_more(guarded: Processor) -> None:
    run = (
        await guarded.http.post(
            "/v1/workflows/approval_workflow/submit", json={"order_id": "1"}, headers={"X-API-KEY": "starter"}
        )
    ).json()["run_id"]
    calls = {
        "read": ("GET", f"/v1/runs/{run}", None),
        "start": ("POST", "/v1/workflows/nothing/submit", {}),
        "answer": ("POST", f"/v1/workflows/resume/{run}", {"user_response": "approve"}),
        "admin": ("POST", f"/v1/runs/{run}/cancel", None),
    }
    allowed = {
        "reader": {"read"},
        "starter": {"read", "start"},
        "answerer": {"read", "answer"},
    }
    for key, scopes in allowed.items():
        for scope, (method, path, body) in calls.items():
            answer = await guarded.http.request(method, path, json=body, headers={"X-API-KEY": key})
            if scope in scopes:
                assert answer.status_code < 300, (key, scope, answer.text)
            else:
                assert answer.status_code == 403
                assert answer.json()["scope"] == scope


async def test_without_keys_a_page_of_another_site_may_do_nothing(one: Processor) -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert (await one.http.post("/v1/workflows/nothing/run", headers=cross)).status_code == 403
    assert (await one.http.get("/v1/runs", headers={"Host": "evil.example"})).status_code == 403
    assert one.engine.starts == 0
    for host in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080", "one"):
        assert (await one.http.get("/v1/runs", headers={"Host": host})).status_code == 200


async def test_a_forged_hop_is_refused(guarded: Processor) -> None:
    headers = {"X-API-KEY": "all-of-it", "agnt5-hop": "chosen.id - 00"}
    answer = await guarded.http.post("/v1/workflows/nothing/submit", headers=headers)
    assert answer.status_code == 403
    assert guarded.engine.starts == 0
