"""Two processors on a real broker: they share the work, and one takes over what the other leaves."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.engine.processes import ProcessorProcess
from tests.engine.test_kill import ORDERS

EVENTS = 3000


async def _produce(bootstrap: str, topic: str, first: int, count: int) -> None:
    """By a plain Kafka client, as any service of a company would."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        sent = [
            await producer.send(topic, json.dumps({"order": i}).encode(), key=str(i).encode())
            for i in range(first, first + count)
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def _create(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 4, 1)])
    finally:
        await admin.close()


def _owned(processor: ProcessorProcess) -> set[int]:
    body = httpx.get(f"{processor.url}/readyz", timeout=5).json()
    return {p["partition"] for p in body["partitions"] if p["caught_up"]}


def _outputs(url: str) -> dict[int, int]:
    """How many completed runs each order has."""
    found: dict[int, int] = {}
    cursor = None
    while True:
        params = {"limit": "200", "status": "completed"} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{url}/v1/runs", params=params, timeout=60).raise_for_status().json()
        for run in page["items"]:
            assert run["output"]["charged"] == run["input"]["order"] * 2
            found[run["input"]["order"]] = found.get(run["input"]["order"], 0) + 1
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_two_processors_share_ten_partitions_and_one_takes_over_when_the_other_is_killed(
    kafka: str, tmp_path: Path
) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    topic, log = f"{prefix}.orders", tmp_path / "steps.log"
    module = tmp_path / "orders_app.py"
    module.write_text(ORDERS.replace('"order.placed"', repr(topic)))
    asyncio.run(_create(kafka, topic))
    settings = {
        "broker": f"kafka://{kafka}", "topic_prefix": f"{prefix}.", "group": prefix, "partitions": 4,
        "trigger_start": "earliest", "test_log": log,
    }  # fmt: skip
    one = ProcessorProcess(module, tmp_path / "data", **settings)
    two = ProcessorProcess(module, tmp_path / "data", **settings)
    try:
        one.start()
        two.start()
        end = time.monotonic() + 60
        while not (_owned(one) and _owned(two) and len(_owned(one) | _owned(two)) == 4):
            assert time.monotonic() < end, (one.tail(), two.tail())
            time.sleep(0.1)
        assert not _owned(one) & _owned(two)
        asyncio.run(_produce(kafka, topic, 0, EVENTS // 2))
        time.sleep(0.3)
        one.kill()
        killed = time.monotonic()
        asyncio.run(_produce(kafka, topic, EVENTS // 2, EVENTS // 2))
        while len(_owned(two)) < 4:
            assert time.monotonic() < killed + 60, two.tail()
            time.sleep(0.1)
        print(f"taken over after {time.monotonic() - killed:.1f} s")
        end = time.monotonic() + 120
        while len(found := _outputs(two.url)) < EVENTS:
            assert time.monotonic() < end, (len(found), two.tail())
            time.sleep(0.5)
        assert found == dict.fromkeys(range(EVENTS), 1)
    finally:
        one.stop()
        two.stop()
