"""The gateway on a real socket: streams, slow and vanished clients, ports, stopping."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from httpx_sse import EventSource

from agnt5_engine.gateway import addresses, connection
from agnt5_engine.gateway.app import create_app
from agnt5_engine.gateway.listening import AddressError
from agnt5_engine.gateway.metrics import STREAMS
from agnt5_engine.gateway.serve import HttpServer
from agnt5_engine.settings import Settings
from tests.gateway.fake_engine import Cluster, FakeEngine
from tests.gateway.flows import workflows


class Live:
    """One processor on a socket of its own."""

    def __init__(self, cluster: Cluster, **settings: object) -> None:
        self.settings = Settings(partitions=cluster.partitions, **({"http": "127.0.0.1:0"} | settings))
        self.server = HttpServer(self.settings)
        self.url = self.server.bind()
        self.engine: FakeEngine = cluster.join(self.url)
        self.http = httpx.AsyncClient(base_url=self.url, timeout=20, trust_env=False)

    async def start(self, cluster: Cluster) -> None:
        await self.server.start(create_app(self.engine, self.settings, cluster.catalog))

    async def stop(self) -> None:
        await self.server.stop()
        await self.http.aclose()


Start = Callable[..., Awaitable[Live]]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster(workflows())
    yield cluster
    await cluster.close()


@pytest.fixture
async def start(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    monkeypatch.chdir(tmp_path)
    running: list[Live] = []

    async def start(**settings: object) -> Live:
        live = Live(cluster, **settings)
        running.append(live)
        await live.start(cluster)
        return live

    yield start
    for live in running:
        await live.stop()


async def begin(live: Live, workflow: str = "signalled") -> str:
    run_id: str = (await live.http.post(f"/v1/workflows/{workflow}/submit", json={})).json()["run_id"]
    return run_id


async def read(live: Live, path: str, seen: list[int], after: int = 0, stop_after: int | None = None) -> None:
    """Collect the seqs of a stream."""
    async with live.http.stream("GET", path, headers={"Last-Event-ID": str(after)}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for event in EventSource(answer).aiter_sse():
            assert json.loads(event.data)["seq"] == int(event.id)
            seen.append(int(event.id))
            if stop_after is not None and len(seen) >= stop_after:
                return


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_stream_brings_events_as_they_happen_and_resumes_after_the_last_one_seen(
    start: Start, cluster: Cluster
) -> None:
    live = await start()
    run_id = await begin(live)
    path = f"/v1/runs/{run_id}/events?follow=1"
    seen: list[int] = []
    await read(live, path, seen, stop_after=1)
    assert seen == [1]
    rest: list[int] = []
    reading = asyncio.create_task(read(live, path, rest, after=1))
    run = cluster.runs[run_id]
    run.record("log")
    await until(lambda: rest == [2])
    for number in (1, 2):
        await live.http.post(f"/v1/runs/{run_id}/signals/go", json={"payload": number})
        await asyncio.sleep(0.02)
    await reading
    # A live-only event repeats the seq it came after; history comes once.
    assert rest == [2, 2, 3]


async def test_a_stream_follows_its_run_to_another_owner_without_a_gap(start: Start, cluster: Cluster) -> None:
    one, two, three = await start(), await start(), await start()
    run_id = await begin(one)
    while cluster.partition_of(run_id) not in two.engine.owned():
        run_id = await begin(one)
    seen: list[int] = []
    reading = asyncio.create_task(read(one, f"/v1/runs/{run_id}/events?follow=1", seen))
    await until(lambda: seen == [1])
    cluster.runs[run_id].record("log")
    await until(lambda: seen == [1, 2])
    cluster.leave(two.engine, None)
    await two.stop()
    cluster.runs[run_id].record("log")
    cluster.move(cluster.partition_of(run_id), three.engine)
    await until(lambda: seen == [1, 2, 3])
    cluster.runs[run_id].end("completed")
    await reading
    assert seen == [1, 2, 3, 4]


async def test_stopping_ends_streams_and_waits_at_once_so_that_clients_ask_elsewhere(
    start: Start, cluster: Cluster
) -> None:
    live = await start()
    run_id = await begin(live)
    seen: list[int] = []
    reading = asyncio.create_task(read(live, f"/v1/runs/{run_id}/events?follow=1", seen))
    waiting = asyncio.create_task(live.http.get(f"/v1/runs/{run_id}?timeout=60"))
    await until(lambda: seen == [1])
    async with asyncio.timeout(5):
        await live.server.stop()
        await reading
        answer = await waiting
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_a_client_that_hangs_up_leaves_no_waiter_behind(start: Start, cluster: Cluster) -> None:
    live = await start()
    waits: list[str] = []
    real = live.engine.finished

    async def finished(run_id: str) -> object:
        waits.append(run_id)
        try:
            return await real(run_id)
        finally:
            waits.remove(run_id)

    live.engine.finished = finished  # type: ignore[method-assign, assignment]
    with pytest.raises(httpx.ReadTimeout):
        await live.http.post("/v1/workflows/signalled/run", json={}, timeout=0.3)
    await until(lambda: not waits)


async def test_a_reader_that_stays_but_does_not_read_holds_little_and_not_for_long(
    start: Start, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await start()
    run_id = await begin(live)
    run = cluster.runs[run_id]
    for _ in range(4000):
        run.record("log", data={"message": "x" * 10_000})
    given = 0
    follow = live.engine.follow

    async def counted(run_id: str, after: int = 0) -> AsyncIterator[object]:
        nonlocal given
        async for event in follow(run_id, after):
            given += 1
            yield event

    monkeypatch.setattr(live.engine, "follow", counted)
    monkeypatch.setattr(connection, "STALLED_SECONDS", 1.0)
    host, port = live.url.removeprefix("http://").split(":")
    with closing(socket.socket()) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        silent.connect((host, int(port)))
        silent.sendall(f"GET /v1/runs/{run_id}/events?follow=1 HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        await until(lambda: given > 0)
        await until(lambda: STREAMS._value.get() == 0)  # let go of
    # What the two ends' sockets take, some megabytes, and no more: not the 40 that there are.
    assert 0 < given < 2000
    assert (await live.http.get("/healthz")).status_code == 200


async def talk(live: Live, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send raw bytes, return all that comes back until the server closes."""
    host, port = live.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_head_that_comes_too_slowly_or_never_ends_the_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    live = await start()
    slow = await talk(live, b"GET /healthz HT", pause=0.5)
    assert slow.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in slow
    assert await talk(live) == b""


async def test_a_body_that_comes_too_slowly_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnt5_engine.gateway.body.BODY_SECONDS", 0.2)
    live = await start()
    head = b"POST /v1/workflows/nothing/run HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{"
    answer = await talk(live, head)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert live.engine.starts == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (
            b"POST /v1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %b2\r\n\r\n{}"
            % (b"0" * 5000),
            422,
        ),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 600_000, 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: " + b"y" * 60_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_not_http_is_told_so_in_a_problem_document(start: Start, sent: bytes, status: int) -> None:
    live = await start()
    answer = await talk(live, sent)
    if answer:  # a peer that still sends when the connection is closed may see only that
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"application/problem+json" in answer
    else:
        assert len(sent) > 500_000
    assert (await live.http.get("/healthz")).status_code == 200


async def test_trailers_are_not_taken_for_headers(start: Start, cluster: Cluster) -> None:
    live = await start(api_keys="key-of-ours")
    head = b"POST /v1/workflows/signalled/submit HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
    end = b"2\r\n{}\r\n0\r\nx-user-id: someone-else\r\nconnection: close\r\n"
    answer = await talk(live, head + b"connection: close\r\n\r\n" + end + b"x-api-key: key-of-ours\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    answer = await talk(live, head + b"connection: close\r\nx-api-key: key-of-ours\r\n\r\n" + end + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 202 ")
    [run] = cluster.runs.values()
    assert run.request.user_id is None


async def flood(writer: asyncio.StreamWriter, piece: bytes) -> None:
    for _ in range(1000):
        writer.write(piece)
        await writer.drain()


@pytest.mark.parametrize("line", [b"a: b\r\n", b"b"], ids=["many", "long"])
async def test_trailers_that_do_not_end_end_the_connection(start: Start, line: bytes) -> None:
    live = await start(api_keys="key-of-ours")
    host, port = live.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with closing(writer):
        writer.write(b"GET /v1/runs HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ")
        assert (await reader.read(12)) == b"HTTP/1.1 401"
        with pytest.raises(ConnectionError):
            await flood(writer, line * 10_000)


async def test_an_over_long_body_is_read_away_so_that_its_sender_reads_the_answer(start: Start) -> None:
    live = await start(max_payload_bytes=1024)
    for _ in range(5):
        answer = await live.http.post("/v1/workflows/nothing/run", json={"x": "y" * 3_000_000})
        assert answer.status_code == 413


def taken() -> tuple[socket.socket, int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener, listener.getsockname()[1]


async def test_a_chosen_port_that_is_taken_is_an_error_that_says_what_to_do() -> None:
    listener, port = taken()
    with closing(listener), pytest.raises(AddressError, match=rf"AGNT5_HTTP=127.0.0.1:{port}.*taken.*choose another"):
        HttpServer(Settings(http=f"127.0.0.1:{port}")).bind()


async def test_the_default_port_gives_way_to_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, port = taken()
    with closing(listener):
        monkeypatch.setattr(Settings, "http_port", property(lambda self: port))
        server = HttpServer(Settings())
        assert int(server.bind().rpartition(":")[2]) > port
        await server.stop()


async def test_the_address_is_noted_in_the_data_directory_while_it_is_served(start: Start, tmp_path: Path) -> None:
    one = await start(data_dir=tmp_path / "d")
    two = await start(data_dir=tmp_path / "d")
    assert set(addresses.noted(tmp_path / "d")) == {one.url, two.url}
    await two.server.stop()
    assert addresses.noted(tmp_path / "d") == [one.url]
    assert addresses.noted(tmp_path / "nowhere") == []
