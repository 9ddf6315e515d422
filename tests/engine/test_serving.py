"""What commands and reads over the real engine are told."""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import time
import weakref

import httpx
import pytest
from pydantic import SecretStr

from agnt5 import FunctionContext, WorkflowContext, function, workflow
from agnt5.types import Envelope, webhook
from agnt5_engine.gateway.app import create_app
from agnt5_engine.gateway.cursors import encode_cursor
from agnt5_engine.ports import NotHere, Refused, StartRequest
from agnt5_engine.transport.base import TooLargeError
from tests.engine.conftest import Engine


@workflow
async def waits_for_go(ctx: WorkflowContext) -> object:
    return await ctx.wait_for_signal("go")


async def test_two_signals_of_one_id_sent_at_once_are_both_answered(engine: Engine) -> None:
    run_id = await engine.submit("waits_for_go")
    async with asyncio.timeout(5):
        await asyncio.gather(*(engine.processor.signal(run_id, "go", 1, "same") for _ in range(3)))


async def test_signals_of_one_id_for_two_runs_are_each_told_their_own_runs_verdict(engine: Engine) -> None:
    ended = await engine.submit("waits_for_go", session_id="s")
    await engine.processor.signal(ended, "go", 1, None)
    await engine.processor.finished(ended)
    waiting = await engine.submit("waits_for_go", session_id="s")
    async with asyncio.timeout(5):
        told = await asyncio.gather(
            *(engine.processor.signal(run_id, "go", 1, "same") for run_id in (ended, waiting)), return_exceptions=True
        )
    assert isinstance(told[0], Refused)
    assert told[0].reason == "ended"
    assert told[1] is None


RELEASED = asyncio.Event()


@function
async def held(ctx: FunctionContext) -> None:
    await RELEASED.wait()


@workflow
async def held_in_place(ctx: WorkflowContext) -> None:
    await held(ctx)


async def test_whoever_waits_to_read_a_runs_state_is_told_when_its_partition_moves(engine: Engine) -> None:
    RELEASED.clear()
    run_id = await engine.submit("waits_for_go", session_id="s")
    await engine.submit("held_in_place", session_id="s")
    await engine.restart()  # the run's code is not in memory now, and its session is busy
    reading = asyncio.create_task(engine.processor.state(run_id))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await engine.stop()
    try:
        with pytest.raises(NotHere):
            await asyncio.wait_for(reading, 3)
    finally:
        RELEASED.set()
        await engine.start()


@workflow
async def after_a_call_in_place(ctx: WorkflowContext) -> object:
    await ctx.state.set("a", await quick(ctx))
    return await ctx.wait_for_signal("go")


@function
async def quick(ctx: FunctionContext) -> int:
    return 7


async def test_state_set_after_a_call_in_place_can_be_read_after_a_restart(engine: Engine) -> None:
    run_id = await engine.submit("after_a_call_in_place")

    async def waits() -> bool:
        return bool((await engine.processor.run(run_id)).waiting_on)

    await engine.until(waits)
    await engine.restart()
    assert await asyncio.wait_for(engine.processor.state(run_id), 3) == {"a": 7}


@workflow
async def asks_for_text(ctx: WorkflowContext) -> object:
    return await ctx.wait_for_user("What?")


async def test_a_payload_that_grows_beyond_the_limit_is_refused_and_its_partition_stays(engine: Engine) -> None:
    grown = [1e9] * 200_000  # a megabyte as it is sent, and 2.6 as it is written
    signalled, asked = [await engine.submit(name) for name in ("waits_for_go", "asks_for_text")]
    owners = [engine.processor.local_owner(run_id) for run_id in (signalled, asked)]
    with pytest.raises(TooLargeError):
        await engine.processor.signal(signalled, "go", grown, None)
    with pytest.raises(TooLargeError):
        await engine.processor.answer(asked, grown, None, None)
    assert [engine.processor.local_owner(run_id) for run_id in (signalled, asked)] == owners


@workflow(triggers=[webhook("shop", event="fields")])
async def takes_fields(ctx: WorkflowContext, text: str) -> int:
    return len(text)


@workflow(triggers=[webhook("shop", event="whole")])
async def takes_whole(ctx: WorkflowContext, event: Envelope) -> int:
    return len(event.value["text"])


@workflow(triggers=[webhook("shop", event="both")])
async def takes_both(ctx: WorkflowContext, text: str, event: Envelope) -> int:
    return len(text)


async def test_a_large_webhook_starts_its_run_or_is_refused_and_its_partition_stays(engine: Engine) -> None:
    settings = engine.settings.model_copy(update={"webhook_secrets": {"shop": [SecretStr("secret")]}})
    owners = engine.processor._live_owners()
    app = create_app(engine.processor, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        for kind, status in (("fields", 202), ("whole", 202), ("both", 413)):
            body = json.dumps({"type": kind, "text": "x" * 1_000_000})
            stamp = int(time.time())
            signature = hmac.new(b"secret", f"{stamp}.{body}".encode(), "sha256").hexdigest()
            headers = {"X-Webhook-Signature": f"t={stamp},v1={signature}"}
            answer = await http.post("/v1/webhooks/shop", content=body, headers=headers)
            assert answer.status_code == status, (kind, answer.text)
            for run_id in answer.json().get("runs", ()):
                assert (await engine.processor.finished(run_id)).output == 1_000_000
    assert engine.processor._live_owners() == owners


@pytest.mark.parametrize(
    ("path", "time", "name"),
    [("runs", 2**64, "x"), ("runs", -(2**64), "x"), ("dead-letters", 1, "x"), ("dead-letters", 1, "0-999")],
)
async def test_a_cursor_that_the_list_cannot_go_on_from_is_refused_by_name(
    engine: Engine, path: str, time: int, name: str
) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.get(f"/v1/{path}", params={"cursor": encode_cursor(time, name)})
    assert answer.status_code == 422, answer.text
    assert [fault["field"] for fault in answer.json()["errors"]] == ["query.cursor"]


async def test_a_start_whose_partition_goes_right_after_it_was_applied_is_known_to_have_started(
    engine: Engine,
) -> None:
    request = StartRequest("waits_for_go", b"{}", {"kind": "http"})
    request.run_id = engine.processor.run_id_for(request)
    owner = engine.processor.local_owner(request.run_id)
    assert owner is not None
    starting = asyncio.create_task(engine.processor.start(request))
    while owner.state.peek(request.run_id) is None:
        await asyncio.sleep(0)
    owner.fail(RuntimeError("the record after it cannot be applied"))
    assert (await starting).run_id == request.run_id


async def test_a_start_whose_partition_goes_while_it_is_written_is_told_that_it_may_have_happened(
    engine: Engine,
) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        starting = asyncio.create_task(http.post("/v1/workflows/waits_for_go/submit", json={}))
        while not any(owner.unacked for owner in engine.processor._owners.values()):
            await asyncio.sleep(0)
        await engine.processor._give_up(engine.processor.owned(), save=False)
        caught, later = await starting, await http.post("/v1/workflows/waits_for_go/submit", json={})
    assert (caught.status_code, later.status_code) == (503, 503)
    assert "whether it did this is not known" in caught.json()["detail"]
    assert "not known" not in later.json()["detail"]


@workflow
async def adds(ctx: WorkflowContext, a: int, b: dict[str, int]) -> int:
    return a + sum(b.values())


async def test_an_input_whose_fields_come_in_another_order_is_the_same_under_its_idempotency_key(
    engine: Engine,
) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:

        async def sent(body: str) -> httpx.Response:
            return await http.post("/v1/workflows/adds/submit", content=body, headers={"Idempotency-Key": "k"})

        first = await sent('{"a": 1, "b": {"x": 1, "y": 2}}')
        again = await sent('{"b": {"y": 2, "x": 1}, "a": 1}')
        other = await sent('{"b": {"y": 1, "x": 2}, "a": 1}')
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409), again.text
    assert (again.json()["run_id"], again.json()["existing"]) == (first.json()["run_id"], True)


@workflow
async def says_how_far_it_is(ctx: WorkflowContext, sleeps: bool) -> None:
    ctx.progress(0.1, "begun")
    if sleeps:
        await ctx.sleep(0.1)
    ctx.progress(0.9, "almost")


@pytest.mark.parametrize("sleeps", [True, False])
async def test_a_stream_brings_what_a_run_says_from_its_start_to_its_end(engine: Engine, sleeps: bool) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.post("/v1/workflows/says_how_far_it_is/stream", json={"sleeps": sleeps})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["data"]["fraction"] for event in events if event["type"] == "progress.update"] == [0.1, 0.9]
    assert [event["type"] for event in events if event["type"] != "progress.update"] == ["run.started", "run.completed"]
    assert events[-1]["type"] == "run.completed"


@workflow
async def logs_what_no_json_can_hold(ctx: WorkflowContext) -> None:
    ctx.logger.warning("file \udcff", extra={"cause": ValueError("it broke"), "sizes": {"a": 1}, "raw": b"\xff"})
    ctx.progress(0.9, "almost \ud800")


async def test_a_stream_goes_on_after_a_log_line_that_no_json_can_hold(engine: Engine) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.post("/v1/workflows/logs_what_no_json_can_hold/stream", json={})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    [logged] = [event["data"] for event in events if event["type"] == "log"]
    assert (logged["message"], logged["cause"], logged["sizes"]) == ("file ?", "it broke", {"a": 1})
    [progress] = [event["data"] for event in events if event["type"] == "progress.update"]
    assert progress == {"fraction": 0.9, "message": "almost ?"}
    assert events[-1]["type"] == "run.completed"


async def test_a_cursor_of_another_list_or_run_is_refused_by_a_history(engine: Engine) -> None:
    app = create_app(engine.processor, engine.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        one, other = [(await engine.run("says_how_far_it_is", b'{"sleeps": false}')).run_id for _ in range(2)]
        own = (await http.get(f"/v1/runs/{one}/events", params={"limit": 1})).json()["next_cursor"]
        runs = (await http.get("/v1/runs", params={"limit": 1})).json()["next_cursor"]
        rest = await http.get(f"/v1/runs/{one}/events", params={"cursor": own})
        refused = [
            await http.get(f"/v1/runs/{run_id}/events", params={"cursor": cursor})
            for run_id, cursor in ((other, own), (one, runs))
        ]
    assert [event["type"] for event in rest.json()["items"]] == ["run.completed"]
    assert [answer.status_code for answer in refused] == [422, 422], [answer.text for answer in refused]


@workflow
async def ends_at_once(ctx: WorkflowContext) -> None: ...


async def test_a_list_that_hardly_a_run_matches_leaves_the_processor_to_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnt5_engine.serving.local.TURN_SECONDS", 0.0)
    ids = {run.run_id for run in await asyncio.gather(*(engine.run("ends_at_once") for _ in range(300)))}
    await engine.restart()  # all of them are only in the table
    listing = asyncio.create_task(
        engine.processor.runs(status="failed", workflow=None, session_id=None, limit=10, before=None)
    )
    turns = 0
    while not listing.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await listing).items == []
    assert turns >= len(ids)


async def test_a_list_has_each_run_once_while_runs_come_to_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnt5_engine.serving.local.TURN_SECONDS", 0.0)
    ids = sorted([(await engine.run("ends_at_once")).run_id for _ in range(50)])
    await engine.restart()
    listing = asyncio.create_task(
        engine.processor.runs(status=None, workflow=None, session_id=None, limit=1000, before=None)
    )
    for run_id in ids:
        assert await engine.processor.events(run_id)
        await asyncio.sleep(0)
    assert sorted(run.run_id for run in (await listing).items) == ids


@workflow
async def asks(ctx: WorkflowContext) -> object:
    return await ctx.wait_for_user("Go on?")


async def test_a_list_of_many_questions_leaves_the_processor_to_others_and_has_each_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnt5_engine.serving.local.TURN_SECONDS", 0.0)
    ids = sorted([await engine.submit("asks") for _ in range(50)])
    while len(await engine.processor.approvals()) < len(ids):
        await asyncio.sleep(0.01)
    await engine.restart()
    listing = asyncio.create_task(engine.processor.approvals())
    turns = 0
    while not listing.done():
        if turns < len(ids):
            await engine.processor.events(ids[turns])  # brings it to memory
        turns += 1
        await asyncio.sleep(0)
    assert sorted(approval.run_id for approval in await listing) == ids
    assert turns >= len(ids)


@workflow
async def says_hello(ctx: WorkflowContext) -> str:
    return "hello"


async def test_finished_runs_that_are_only_read_do_not_stay_in_memory(engine: Engine) -> None:
    run_ids = [(await engine.run("says_hello")).run_id for _ in range(3)]

    async def forgotten() -> bool:
        return not any(owner.state.runs for owner in engine.processor._owners.values())

    await engine.until(forgotten)
    await asyncio.sleep(0.5)  # what the runs leave to be delivered is written down, and the journal rests
    for run_id in run_ids:
        assert await engine.processor.events(run_id)
        assert await engine.processor.history(run_id)
    await engine.until(forgotten, 5)


class Frame:
    """Something large that code logs."""


FRAMES: list[weakref.ref[Frame]] = []


@function
async def logs_a_frame(ctx: FunctionContext) -> None:
    frame = Frame()
    FRAMES.append(weakref.ref(frame))
    ctx.logger.info("read", extra={"frame": frame, "rows": 3})


@workflow
async def reads_a_frame(ctx: WorkflowContext) -> None:
    await ctx.step(logs_a_frame)


async def test_what_a_run_has_logged_is_freed_with_the_run(engine: Engine) -> None:
    FRAMES.clear()
    run = await engine.run("reads_a_frame")
    lines = [e async for e in engine.processor.follow(run.run_id) if e.type == "log"]
    assert [line.data["rows"] for line in lines] == [3]
    assert "Frame object" in lines[0].data["frame"]
    gc.collect()
    assert [frame() for frame in FRAMES] == [None]
