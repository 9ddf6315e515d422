"""An owner frozen for longer than the session wakes after its successor has checkpointed, and changes nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx

from agnt5_engine.partition.table import Table
from agnt5_engine.runs import table
from tests.group.world import SESSION, get_run, group_of, history, lines, owned, start_run, until


def kept_locally(folder: Path) -> dict[bytes, bytes]:
    """The primary rows of a processor's local table, but for its markers."""
    opened = Table(folder)
    try:
        found = {}
        for family in (table.RUN, table.HISTORY, table.PENDING, table.SESSION, table.USER, table.OUTBOX):
            found |= dict(opened.scan(family))
        return found
    finally:
        opened.close()


def test_a_frozen_owner_that_wakes_after_its_successor_has_checkpointed_changes_nothing(
    kafka: str, tmp_path: Path
) -> None:
    with group_of(kafka, tmp_path, partitions=1, checkpoint_interval=0.3) as group:
        frozen, successor = group.start("a"), group.start("b")
        # In the middle of a step when it freezes: its result is the first thing it will want to write.
        seconds = SESSION + 4
        run_id = start_run(frozen, "patient", seconds=seconds)
        others = [start_run(frozen, "waits") for _ in range(5)]
        until(lambda: len(group.steps_log.read_text().splitlines()) == 1, frozen.tail)
        frozen.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: owned(successor) == {0}, successor.tail)
        assert time.monotonic() - stopped > SESSION - 2
        until(lambda: get_run(successor, run_id)["status"] == "completed", successor.tail)
        ended = start_run(successor, "waits")
        httpx.post(f"{successor.url}/v1/runs/{ended}/signals/go", json={"payload": "x"}, timeout=30).raise_for_status()
        until(lambda: get_run(successor, ended)["status"] == "completed", successor.tail)
        until(lambda: group.marker().applied == len(group.journal()) - 1, successor.tail)

        def told() -> list[Any]:
            return [(get_run(successor, one), history(successor, one)) for one in (run_id, ended, *others)]

        runs, rows, journal = told(), group.rows(), len(group.journal())
        frozen.signal(signal.SIGCONT)
        # What it had begun is over a moment after it wakes; whatever it writes then, it writes as the old owner. Once
        # it is a member again, the group may give it the partition back, or leave it where it is.
        until(lambda: lines(frozen, "partitions.assigned")[1:], frozen.tail)
        time.sleep(3)
        assert told() == runs, "no run's history"
        assert group.rows() == rows, "nor the changelog"
        until(lambda: owned(successor) | owned(frozen) == {0}, successor.tail)
        until(lambda: group.marker().applied == len(group.journal()) - 1, successor.tail)
        print(f"the old owner wrote {len(group.journal()) - journal} records that were ignored")
        assert get_run(frozen, run_id) == runs[0][0]
        pids = [line.split()[1] for line in group.steps_log.read_text().splitlines()]
        assert runs[0][0]["output"] == pids[1] != pids[0], "it was the successor's result that counted"
        successor.stop()
        until(lambda: owned(frozen) == {0}, frozen.tail)
        frozen.stop()
        for name in ("a", "b"):
            (folder,) = (tmp_path / name).glob("slots/*/tables/*/0")
            assert kept_locally(folder) == {
                key: value for key, value in group.rows().items() if key[:1] != table.SCHEDULE
            }
