"""What a program that uses the client can rely on, whichever engine is behind it."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field

from agnt5 import AsyncClient, Client, WorkflowContext, workflow
from agnt5.client import (
    ApiError,
    ConflictError,
    InvalidError,
    NotFoundError,
    RunError,
    UnavailableError,
    WaitTimeoutError,
)
from agnt5.client.calls import start_call
from agnt5.client.models import Event, Run
from tests.client.backends import Backend
from tests.client.conftest import Caller


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def asked(client: Caller, run_id: str) -> None:
    """Wait until the run has asked its question."""
    async with asyncio.timeout(20):
        while (await client.get_run(run_id)).status != "awaiting_user_input":
            await asyncio.sleep(0.02)


@dataclass
class Order:
    number: int


class OrderModel(BaseModel):
    number: int


@pytest.mark.parametrize("input", [{"number": 4}, Order(4), OrderModel(number=4)])
async def test_run_returns_the_output(client: Caller, input: object) -> None:
    assert await client.run("double", input) == 8


class Scan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    page: int = Field(serialization_alias="Page")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def index(self) -> int:
        return self.page - 1


@dataclass
class Letter:
    seal: bytes
    scans: list[Scan]


@workflow(name="read_letter")
async def read_letter(ctx: WorkflowContext, letter: Letter, stamp: bytes, tags: set[str]) -> None: ...


def test_what_a_client_passes_is_what_the_workflow_gets() -> None:
    given = {"letter": Letter(b"\xff\x00", [Scan(page=1)]), "stamp": b"abcd", "tags": set("qwertyuiop")}
    sent = start_call("run", read_letter, given, None, None, None).body
    assert sent is not None
    assert read_letter.bind(sent, strict=True) == given
    assert b'"tags":["e","i","o","p","q","r","t","u","w","y"]' in sent, "the same for the same idempotency key"


async def test_a_run_that_fails_raises_with_the_run(client: Caller) -> None:
    with pytest.raises(RunError, match="ValueError: card declined") as caught:
        await client.run("fails")
    assert caught.value.run.status == "failed"
    assert caught.value.run.error is not None
    assert caught.value.run.error.type == "ValueError"


async def test_input_that_does_not_bind_names_the_field(client: Caller) -> None:
    with pytest.raises(InvalidError) as caught:
        await client.run("double", {"number": "many"})
    assert list(caught.value.fields) == ["number"]
    with pytest.raises(InvalidError):
        await client.run("double", {"number": float("nan")})
    with pytest.raises(TypeError, match="by name"):
        await client.run("double", 4)


async def test_an_unknown_workflow_or_run_is_a_lookup_error(client: Caller) -> None:
    with pytest.raises(NotFoundError, match="double") as caught:
        await client.submit("doubel", {"number": 1})
    assert caught.value.problem.model_extra == {"near": ["double"]}
    for method in ("get_run", "wait", "cancel", "history", "state"):
        with pytest.raises(LookupError):
            await getattr(client, method)("no.such.run")


async def test_a_submitted_run_is_waited_for_by_its_id_and_keeps_its_session_and_user(client: Caller) -> None:
    run_id = await client.submit("double", {"number": 3}, session_id="sitzung ü", user_id="ada")
    run: Run = await client.wait(run_id, timeout=20)
    assert (run.output, run.session_id, run.user_id) == (6, "sitzung ü", "ada")
    assert run.finished_at is not None
    assert run.finished_at >= run.created_at


async def test_the_same_key_is_the_same_run_and_with_other_input_a_conflict(client: Caller) -> None:
    key = uuid4().hex
    first = await client.submit("double", {"number": 3}, idempotency_key=key)
    assert await client.submit("double", {"number": 3}, idempotency_key=key) == first
    assert await client.run("double", {"number": 3}, idempotency_key=key) == 6
    with pytest.raises(ConflictError):
        await client.run("double", {"number": 4}, idempotency_key=key)


async def test_a_time_out_hands_over_the_run_which_goes_on(client: Caller) -> None:
    with pytest.raises(WaitTimeoutError, match=r"after 0\.2 s") as caught:
        await client.run("signalled", timeout=0.2)
    assert isinstance(caught.value, (RunError, TimeoutError))
    run_id = caught.value.run.run_id
    with pytest.raises(WaitTimeoutError):
        await client.wait(run_id, timeout=0)
    await client.signal(run_id, "go", 1)
    await client.signal(run_id, "go", {"two": 2})
    assert (await client.wait(run_id, timeout=20)).output == [1, {"two": 2}]


async def test_an_answer_resumes_a_run_and_is_checked(client: Caller) -> None:
    run_id = await client.submit("approval_workflow", {"order_id": "7"})
    await asked(client, run_id)
    assert [one.question for one in (await client.approvals()).items if one.run_id == run_id] == ["Approve 7?"]
    with pytest.raises(InvalidError) as invalid:
        await client.answer(run_id, "maybe")
    assert invalid.value.problem.model_extra == {"options": ["approve", "reject"]}
    await client.answer(run_id, "approve", user_id="ada")
    assert (await client.wait(run_id, timeout=20)).output == {"decision": "approve"}
    with pytest.raises(ConflictError):
        await client.answer(run_id, "reject")


async def test_a_signal_id_counts_once(client: Caller) -> None:
    run_id = await client.submit("signalled")
    for _ in range(3):
        await client.signal(run_id, "go", 1, id="first")
    assert (await client.get_run(run_id)).status == "running"
    await client.signal(run_id, "go", 2, id="second")
    assert (await client.wait(run_id, timeout=20)).output == [1, 2]


async def test_a_signal_may_have_any_name(client: Caller) -> None:
    for name in (".", "..", "a/../b", "100%", "ü ?#"):
        run_id = await client.submit("named_signal", {"name": name})
        await client.signal(run_id, name, 1)
        assert (await client.wait(run_id, timeout=20)).output == 1


async def test_cancel_ends_a_run_once(client: Caller) -> None:
    run_id = await client.submit("signalled")
    await client.cancel(run_id)
    assert (await client.wait(run_id, timeout=20)).status == "cancelled"
    with pytest.raises(ConflictError):
        await client.cancel(run_id)


async def test_a_failed_run_can_go_on_again(client: Caller) -> None:
    run_id = await client.submit("fails")
    assert (await client.wait(run_id, timeout=20)).status == "failed"
    await client.retry(run_id)
    assert (await client.wait(run_id, timeout=20)).status == "failed"
    types = [event.type for event in await client.history(run_id)]
    assert types.count("workflow.step.failed") == 2


async def test_list_runs_pages_through_one_session(client: Caller) -> None:
    session = uuid4().hex
    ids = [await client.submit("nothing", session_id=session) for _ in range(5)]
    found: list[str] = []
    cursor = None
    while True:
        page = await client.list_runs(session_id=session, limit=2, cursor=cursor)
        found += [run.run_id for run in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ids[::-1]
    with pytest.raises(InvalidError):
        await client.list_runs(status="sleeping")


async def test_an_event_starts_one_run_for_its_id(client: Caller) -> None:
    user, event_id = uuid4().hex, uuid4().hex
    for _ in range(2):
        landed = await client.publish("user.signed_up", {"user_id": user}, key=user, event_id=event_id)
        assert landed.topic == "user.signed_up"
    async with asyncio.timeout(20):
        while True:
            runs = (await client.list_runs(workflow="welcome", limit=1000)).items
            if [run for run in runs if run.input == {"user_id": user}]:
                break
            await asyncio.sleep(0.05)
    assert len([run for run in runs if run.input == {"user_id": user}]) == 1


async def test_stream_starts_a_run_and_brings_its_events(client: Caller) -> None:
    events: list[Event] = []
    await client.stream(events.append, "double", {"number": 1})
    assert [event.type for event in events] == [
        "run.started",
        "workflow.step.started",
        "workflow.step.completed",
        "run.completed",
    ]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    again: list[Event] = []
    await client.stream(again.append, events[0].run_id, after=events[1].seq)
    assert again == events[2:]
    assert await client.history(events[0].run_id) == events


async def test_streaming_an_unknown_run_or_workflow_raises_not_found(client: Caller) -> None:
    with pytest.raises(NotFoundError):
        await client.stream(print, "no.such.run")
    with pytest.raises(NotFoundError):
        await client.stream(print, "no_such_workflow", {})


async def test_whoever_waits_for_a_run_whose_owner_is_killed_gets_the_result(client: Caller, backend: Backend) -> None:
    key = uuid4().hex
    running = asyncio.create_task(client.run("signalled", idempotency_key=key))
    await asyncio.sleep(0.2)
    run_id = await client.submit("signalled", idempotency_key=key)
    events: list[Event] = []
    streaming = asyncio.create_task(client.stream(events.append, run_id))
    await until(lambda: bool(events))
    await asyncio.to_thread(backend.shake, run_id)
    async with AsyncClient(backend.urls) as survivor:
        await survivor.signal(run_id, "go", 1)
        await survivor.signal(run_id, "go", 2)
        assert (await survivor.wait(run_id, timeout=20)).output == [1, 2]
    assert await running == [1, 2]
    await streaming
    history = [event.seq for event in events if event.type not in ("log", "progress.update")]
    assert history == sorted(set(history))
    assert events[-1].type == "run.completed"


async def test_nobody_there_is_an_error_that_says_where_it_asked() -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9"):
        await AsyncClient("http://127.0.0.1:9", patience=0.3).get_run("a")
    with Client("http://127.0.0.1:9", patience=0) as client, pytest.raises(ConnectionError):
        client.publish("t", {})


@pytest.mark.parametrize("method", ["run", "wait"])
async def test_whoever_waits_for_so_long_is_not_kept_longer_by_the_clients_patience(method: str) -> None:
    with Client("http://127.0.0.1:9") as client:
        begun = time.monotonic()
        with pytest.raises(UnavailableError):
            getattr(client, method)("a", timeout=1)
    assert 0.5 < time.monotonic() - begun < 20, "and not for the minute of its patience"


async def test_calls_that_fail_together_all_turn_to_the_address_that_answers() -> None:
    async def serve(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        if request.url.host == "gone":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"items": []})

    transport = httpx.MockTransport(serve)
    async with AsyncClient(["http://gone", "http://there"], patience=1.0, transport=transport) as client:
        await asyncio.gather(client.workflows(), client.workflows())


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("breaks", [True, False])
async def test_streams_that_end_as_soon_as_they_are_opened_are_opened_with_pauses_and_not_for_ever(
    started: bool, breaks: bool
) -> None:
    opened = 0
    run = {"run_id": "a", "workflow": "w", "status": "running", "created_at": "2026-01-01T00:00:00Z"}
    run["trigger"] = {"kind": "http"}  # type: ignore[assignment]

    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b": open\n\n"
            if breaks:
                raise httpx.ReadError("gone")

    def serve(request: httpx.Request) -> httpx.Response:
        nonlocal opened
        if not request.url.path.endswith(("/stream", "/events")):
            return httpx.Response(200, json=run)
        opened += 1
        if opened > 100:
            raise AssertionError("without a pause")
        headers = {"content-type": "text/event-stream", **({"location": "/v1/runs/a"} if started else {})}
        return httpx.Response(200, headers=headers, stream=Broken())

    client = Client("http://there", patience=1.0, transport=httpx.MockTransport(serve))
    with client, pytest.raises(UnavailableError):
        list(client.stream("w", {}))
    assert opened < 10


async def test_a_call_that_one_processor_cannot_do_just_now_is_done_by_the_next() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.host == "cut-off":
            return httpx.Response(503, headers={"retry-after": "0"}, json={"title": "Unavailable", "status": 503})
        if request.url.path.endswith("/stream"):
            return httpx.Response(422, json={})
        return httpx.Response(200, json={"items": []})

    urls = ["http://cut-off", "http://there"]
    with Client(urls, patience=5, transport=httpx.MockTransport(serve)) as client:
        client.workflows()
    with Client(urls, patience=5, transport=httpx.MockTransport(serve)) as client, pytest.raises(InvalidError):
        list(client.stream("w", {}))
    async with AsyncClient(urls, patience=5, transport=httpx.MockTransport(serve)) as client:
        await asyncio.gather(client.workflows(), client.workflows())


def test_a_page_instead_of_an_answer_is_an_error_that_shows_it() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<html>Log in first</html>")

    with Client("http://there", transport=httpx.MockTransport(serve)) as blocking:
        for call in (lambda: blocking.submit("w"), lambda: blocking.run("w"), lambda: blocking.state("a")):
            with pytest.raises(ApiError, match="Log in first"):
                call()


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_that_reaches_nobody_just_now_is_asked_again(status: int) -> None:
    left = 2

    def serve(request: httpx.Request) -> httpx.Response:
        nonlocal left
        left -= 1
        if left >= 0:
            return httpx.Response(status, text="<html>Bad Gateway</html>")
        if request.url.path.endswith("/stream"):
            return httpx.Response(422, json={})
        return httpx.Response(202, json={"run_id": "a", "status": "pending"})

    with Client("http://there", transport=httpx.MockTransport(serve)) as client:
        assert client.submit("w", {}, idempotency_key="k") == "a"
        left = 1
        with pytest.raises(InvalidError):
            list(client.stream("w", {}))


async def test_an_answer_that_is_sent_again_does_not_answer_the_next_question(backend: Backend) -> None:
    class Losing(httpx.AsyncHTTPTransport):
        """Brings the first answer to the API, asks for the next question, and loses the reply."""

        lost = False

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            reply = await super().handle_async_request(request)
            if "/resume/" in request.url.path and not self.lost:
                self.lost = True
                await reply.aclose()
                async with asyncio.timeout(20), AsyncClient(backend.urls) as other:
                    while all(one.run_id != run_id for one in (await other.approvals()).items):
                        await asyncio.sleep(0.02)
                raise httpx.ReadError("gone")
            return reply

    async with AsyncClient(backend.urls, transport=Losing()) as client:
        run_id = await client.submit("one_by_one")
        await asked(Caller(client), run_id)
        await client.answer(run_id, "approve")
        assert (await client.get_run(run_id)).status == "awaiting_user_input", "the second is still asked"
        await client.answer(run_id, "reject")
        assert (await client.wait(run_id, timeout=20)).output == ["approve", "reject"]


async def test_a_retry_that_is_sent_again_tries_once(backend: Backend) -> None:
    class Losing(httpx.AsyncHTTPTransport):
        """Brings the first retry to the API, waits until the run has failed again, and loses the reply."""

        lost = False

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            reply = await super().handle_async_request(request)
            if request.url.path.endswith("/retry") and not self.lost:
                self.lost = True
                await reply.aclose()
                async with AsyncClient(backend.urls) as other:
                    assert (await other.wait(run_id, timeout=20)).status == "failed"
                raise httpx.ReadError("gone")
            return reply

    async with AsyncClient(backend.urls, transport=Losing()) as client:
        run_id = await client.submit("fails")
        await client.wait(run_id, timeout=20)
        await client.retry(run_id)
        assert (await client.wait(run_id, timeout=20)).status == "failed"
        types = [event.type for event in await client.history(run_id)]
        assert types.count("workflow.step.failed") == 2


async def test_many_that_wait_for_a_run_keep_no_other_call_waiting(backend: Backend) -> None:
    async with AsyncClient(backend.urls) as client, asyncio.timeout(20):
        run_id = await client.submit("signalled")
        waiting = [asyncio.create_task(client.wait(run_id)) for _ in range(101)]
        await asyncio.sleep(1)
        for payload in (1, 2):
            await client.signal(run_id, "go", payload)
        assert {tuple(run.output) for run in await asyncio.gather(*waiting)} == {(1, 2)}


async def test_a_name_that_no_header_can_hold_is_refused_at_once(client: Caller) -> None:
    for name in ("ada\n", " ada", "a\0da"):
        async with asyncio.timeout(5):
            with pytest.raises(InvalidError, match="x-session-id"):
                await client.submit("nothing", {}, session_id=name)
            with pytest.raises(InvalidError, match="idempotency-key"):
                await client.stream(print, "nothing", {}, idempotency_key=name)


async def test_a_key_that_ends_its_line_opens_the_door() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.headers["x-api-key"] == "secret" else 401, json={"items": []})

    with Client("http://there", api_key="secret\n", transport=httpx.MockTransport(serve)) as client:
        client.workflows()


def test_both_clients_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        return {
            name: [str(parameter) for parameter in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize("kind", ["run", "wait"])
async def test_a_processor_that_hangs_keeps_nobody_for_long_after_his_timeout(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnt5.client.calls._SHORT_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # the kernel accepts, and nobody answers
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        async with asyncio.timeout(10), AsyncClient(url) as client:
            with pytest.raises(UnavailableError, match="no answer"):
                await (client.run("a", timeout=0.2) if kind == "run" else client.wait("a", timeout=0.2))
