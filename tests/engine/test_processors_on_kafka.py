"""Two processors on a real broker: they share the work, and one takes over what the other leaves."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from tests.engine.processes import ProcessorProcess
from tests.kafka.administrator import administrator

EXAMPLE = Path(__file__).parents[2] / "examples" / "orders.py"
EVENTS = int(os.environ.get("AGNT5_TEST_ORDERS", "10000"))


async def _produce(bootstrap: str, topic: str) -> None:
    """By a plain Kafka client, as any service of a company would."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        for i in range(EVENTS):
            order = {"order_id": f"A-{i}", "amount": i + 0.5}
            await producer.send(topic, json.dumps(order).encode(), key=str(i).encode())
        await producer.flush()
    finally:
        await producer.stop()


async def _create(bootstrap: str, topic: str) -> None:
    async with administrator(bootstrap) as admin:
        await admin.create_topics([NewTopic(topic, 4, 1)])


def _owned(processor: ProcessorProcess) -> set[int]:
    body = httpx.get(f"{processor.url}/readyz", timeout=5).json()
    return {p["partition"] for p in body["partitions"] if p["caught_up"]}


def _outputs(url: str) -> dict[str, int]:
    """How many completed runs each order has."""
    found: dict[str, int] = {}
    cursor = None
    while True:
        params = {"limit": "200", "status": "completed"} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{url}/v1/runs", params=params, timeout=60).raise_for_status().json()
        for run in page["items"]:
            order = run["input"]["order_id"]
            assert run["output"] == {"status": "complete", "order_id": order, "charge_id": f"ch-{order}"}
            found[order] = found.get(order, 0) + 1
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _ledger(path: Path) -> list[dict[str, Any]]:
    """What the payment provider saw; a line that is being written is left out."""
    return [json.loads(line) for line in (path.read_text() if path.exists() else "").rpartition("\n")[0].splitlines()]


def test_two_processors_share_the_orders_and_one_goes_on_with_every_run_of_the_other_when_that_is_killed(
    kafka: str, tmp_path: Path
) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    topic, ledger = f"{prefix}.orders", tmp_path / "charges.jsonl"
    module = tmp_path / "orders.py"
    module.write_text(EXAMPLE.read_text().replace('"order.placed"', repr(topic)))
    asyncio.run(_create(kafka, topic))
    settings = {
        "broker": f"kafka://{kafka}", "topic_prefix": f"{prefix}.", "group": prefix, "partitions": 4,
        "trigger_start": "earliest",
    }  # fmt: skip
    one = ProcessorProcess(module, tmp_path / "data", **settings)
    two = ProcessorProcess(module, tmp_path / "data", **settings)
    try:
        for processor in (one, two):
            processor.env["ORDERS_LEDGER"] = str(ledger)
            processor.start()
        end = time.monotonic() + 60
        while not (_owned(one) and _owned(two) and len(_owned(one) | _owned(two)) == 4):
            assert time.monotonic() < end, (one.tail(), two.tail())
            time.sleep(0.1)
        assert not _owned(one) & _owned(two)
        assert one.process is not None
        producing = threading.Thread(target=lambda: asyncio.run(_produce(kafka, topic)))
        producing.start()
        end = time.monotonic() + 60
        while sum(call["pid"] == one.process.pid for call in _ledger(ledger)) < 100:
            assert time.monotonic() < end, one.tail()
        one.kill()
        killed = time.monotonic()
        producing.join()
        while len(_owned(two)) < 4:
            assert time.monotonic() < killed + 60, two.tail()
            time.sleep(0.1)
        print(f"taken over after {time.monotonic() - killed:.1f} s")
        end = time.monotonic() + 60 + EVENTS / 50
        while len(confirmed := {e["order_id"] for e in _ledger(ledger) if e["call"] == "confirm"}) < EVENTS:
            assert time.monotonic() < end, (len(confirmed), two.tail())
            time.sleep(0.5)
        while len(found := _outputs(two.url)) < EVENTS:
            assert time.monotonic() < end, (len(found), two.tail())
        print(f"all completed {time.monotonic() - killed:.1f} s after the kill")
        assert found == dict.fromkeys((f"A-{i}" for i in range(EVENTS)), 1)
        calls = _ledger(ledger)
        charged = {call["idempotency_key"]: call["order_id"] for call in calls if call["call"] == "charge"}
        assert sorted(charged.values()) == sorted(found), "one key for each order, by whichever processor"
        begun = {call["order_id"] for call in calls if call["pid"] == one.process.pid and call["call"] == "charge"}
        ended = {call["order_id"] for call in calls if call["pid"] == one.process.pid and call["call"] == "confirm"}
        assert begun - ended, "it was killed in the middle of some"
        again = len(calls) - 2 * EVENTS
        print(f"{len(begun)} charged by the one that was killed, {len(begun - ended)} of them confirmed by the other")
        print(f"{again} calls made again")
        assert again <= len(begun), "only what it had not got into the log"
    finally:
        one.stop()
        two.stop()
