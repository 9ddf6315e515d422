"""A broker that is not there yet, restarts or freezes: processors wait, say so, lose nothing, and go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.group.world import completed, group_of, lines, readiness, start_run, until

#: How long the broker is frozen (s): longer than the session timeout of the processors.
PAUSE = float(os.environ.get("AGNT5_TEST_PAUSE", "10"))
ORDERS = 300


def _says_it_waits(processor: Any) -> bool:
    body = readiness(processor)
    return not body["ready"] and "broker" in str(body.get("detail"))


def test_a_processor_started_before_its_broker_waits_says_so_and_goes_on_by_itself(
    own_kafka: Any, tmp_path: Path
) -> None:
    own_kafka.stop()
    with group_of(own_kafka.bootstrap, tmp_path) as group:
        one = group.processor()
        one.start(wait=False)
        until(lambda: _says_it_waits(one), lambda: (readiness(one), one.tail()))
        until(lambda: lines(one, "kafka.away") or lines(one, "broker.waiting"), one.tail)
        assert own_kafka.bootstrap in str((lines(one, "kafka.away") + lines(one, "broker.waiting"))[0])
        own_kafka.start(tied=True)
        one.wait_ready()
        assert start_run(one, "waits")
        assert one.process is not None
        assert one.process.poll() is None
        own_kafka.stop()
        until(lambda: _says_it_waits(one), lambda: (readiness(one), one.tail()))
        began = time.monotonic()
        one.signal(signal.SIGTERM)
        assert one.process.wait(30) == 0, one.tail()
        print(f"stopped after {time.monotonic() - began:.1f} s, without a broker")
        own_kafka.start(tied=True)


@pytest.mark.parametrize("how", ["restarted", "killed", "frozen"])
def test_what_was_accepted_before_a_broker_went_away_is_done_once_it_is_back(
    own_kafka: Any, tmp_path: Path, how: str
) -> None:
    with group_of(own_kafka.bootstrap, tmp_path) as group:
        group.create()
        one = group.start()
        waiting = start_run(one, "waits")
        group.produce(0, ORDERS)
        accepted: set[str] = set()
        stop = threading.Event()
        sender = threading.Thread(target=_submit, args=(one.url, accepted, stop))
        sender.start()
        until(lambda: len(accepted) >= 20, one.tail)
        if how == "frozen":
            own_kafka.pause()
            time.sleep(PAUSE)
            assert _says_it_waits(one), readiness(one)
            own_kafka.resume()
        else:
            (own_kafka.stop if how == "restarted" else own_kafka.kill)()
            own_kafka.start(tied=True)
        one.wait_ready()
        before = len(accepted)
        until(lambda: len(accepted) >= before + 20, one.tail)
        stop.set()
        sender.join()
        group.produce(ORDERS, 50)
        assert group.wait_completed(one, ORDERS + 50) == dict.fromkeys(range(ORDERS + 50), 1)
        answer = httpx.post(f"{one.url}/v1/runs/{waiting}/signals/go", json={"payload": "on"}, timeout=30)
        assert answer.status_code == 202
        accepted.add(waiting)
        until(lambda: accepted <= _ended(one.url), lambda: (accepted - _ended(one.url), one.tail()))
        assert one.process is not None
        assert one.process.poll() is None
        assert completed(one.url) == dict.fromkeys(range(ORDERS + 50), 1)


def _submit(url: str, accepted: set[str], stop: threading.Event) -> None:
    """Start runs one after the other; what is answered with 202 is accepted, an error is not."""
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop.is_set():
            try:
                answer = http.post("/v1/workflows/patient/submit", json={"seconds": 0})
                if answer.status_code == 202:
                    accepted.add(answer.json()["run_id"])
            except httpx.HTTPError:
                pass
            time.sleep(0.02)


def _ended(url: str) -> set[str]:
    found: set[str] = set()
    cursor = None
    while True:
        params = {"limit": "200", "status": "completed"} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{url}/v1/runs", params=params, timeout=60).raise_for_status().json()
        found |= {run["run_id"] for run in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found
