"""Processors come and go; their partitions go on elsewhere, or wait for them, and nothing is lost or done again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.group.world import completed, get_run, group_of, lines, owned, readiness, start_run, until

ORDERS = 400


@pytest.mark.parametrize("standbys", [0, 1], ids=["alone", "standby"])
def test_after_kill_9_the_other_processor_has_everything_within_the_session_timeout_and_a_moment(
    kafka: str, tmp_path: Path, standbys: int
) -> None:
    session = 6
    with group_of(kafka, tmp_path, session_timeout=session, standbys=standbys, checkpoint_interval=1) as group:
        group.create()
        one, two = group.start("a"), group.start("b")
        group.wait_shared(one, two)
        group.produce(0, ORDERS)
        group.wait_completed(two, ORDERS)
        mine = owned(one)
        until(lambda: all(len(group.rows(partition)) > 50 for partition in mine), one.tail)
        if standbys:
            until(lambda: lines(two, "standby.started"), two.tail)
            time.sleep(2)  # for the standby to look
        one.kill()
        killed = time.monotonic()
        until(lambda: len(owned(two)) == 2, two.tail, session + 60)
        seconds = time.monotonic() - killed
        print(f"taken over after {seconds:.1f} s (session timeout {session} s, standbys {standbys})")
        assert seconds < session + 10
        restored = [line["rows"] for line in lines(two, "table.restored") if line["partition"] in mine]
        rows = sum(len(group.rows(partition)) for partition in mine)
        assert sum(restored) < rows / 2 if standbys else sum(restored) >= rows
        group.produce(ORDERS, 10)
        assert group.wait_completed(two, ORDERS + 10) == dict.fromkeys(range(ORDERS + 10), 1)


def test_a_processor_restarted_in_its_place_has_its_partitions_back_without_a_rebalance_or_a_time_out(
    kafka: str, tmp_path: Path
) -> None:
    session = 60
    with group_of(kafka, tmp_path, session_timeout=session) as group:
        group.create()
        one, two = group.start("a"), group.start("b")
        group.wait_shared(one, two)
        before, rebalances = owned(one), len(lines(two, "partitions.assigned"))
        waiting = start_run(one, "waits")
        one.kill()
        killed = time.monotonic()
        one.start()
        until(lambda: owned(one) == before, one.tail)
        print(f"back after {time.monotonic() - killed:.1f} s (session timeout {session} s)")
        one.stop()  # gracefully, and the place is kept all the same
        one.start()
        until(lambda: owned(one) == before, one.tail)
        assert time.monotonic() - killed < session
        assert len(lines(two, "partitions.assigned")) == rebalances, "the other one did not notice"
        assert get_run(two, waiting)["status"] == "running"


def test_a_graceful_stop_checkpoints_first_so_that_the_next_owner_has_nothing_to_apply(
    kafka: str, tmp_path: Path
) -> None:
    with group_of(kafka, tmp_path, partitions=1, checkpoint_interval=60) as group:
        group.create(partitions=1)
        one = group.start("a")
        group.produce(0, 100)
        group.wait_completed(one, 100)
        group.produce(100, 100)
        one.stop()
        assert one.process is not None
        assert one.process.returncode == 0, one.tail()
        marker, end = group.marker(), len(group.journal())
        assert marker.clean
        assert marker.applied == end - 1, "the checkpoint covers all of the journal"
        two = group.start("b")
        (recovered,) = lines(two, "partition.recovered")
        # The requests that it made of the rest of the events, while it waited for the partition, and its own claim.
        assert recovered["applied"] == recovered["claim"] + 1 - end
        group.wait_completed(two, 200)
        assert completed(two.url) == dict.fromkeys(range(200), 1)


def test_a_processor_told_to_leave_gives_its_partitions_up_at_once(kafka: str, tmp_path: Path) -> None:
    session = 60
    with group_of(kafka, tmp_path, session_timeout=session) as group:
        one, two = group.start("a"), group.processor("b")
        two.leave = True
        two.start()
        group.wait_shared(one, two)
        two.stop()
        assert until(lambda: len(owned(one)) == 2, one.tail) < session / 2


def test_processors_of_one_machine_take_the_next_slot_and_the_next_port_and_say_so(kafka: str, tmp_path: Path) -> None:
    with group_of(kafka, tmp_path) as group:
        one, two = group.processor(), group.processor()
        for processor in (one, two):
            del processor.env["AGNT5_HTTP"]
            processor.start(wait=False)
            until(lambda p=processor: lines(p, "http.listening"), processor.tail)
            processor.url = lines(processor, "http.listening")[-1]["url"]
            processor.wait_ready()
        group.wait_shared(one, two)
        slots = [lines(processor, "processor.starting")[0] for processor in (one, two)]
        assert [line["slot"] for line in slots] == [0, 1]
        assert len({line["instance"] for line in slots}) == 2
        (taken,) = lines(two, "http.next_port")[-1:]
        assert taken["port"] == int(two.url.rpartition(":")[2]) > taken["taken"]
        assert readiness(one)["ready"]


def test_a_name_that_a_second_processor_takes_is_left_to_it_and_the_first_says_why_it_ends(
    kafka: str, tmp_path: Path
) -> None:
    with group_of(kafka, tmp_path, instance_id="the-one", partitions=1) as group:
        one = group.start("a")
        two = group.start("b")
        until(lambda: owned(two) == {0}, two.tail)
        assert one.process is not None
        assert one.process.wait(30) != 0
        assert "AGNT5_INSTANCE_ID" in one.tail()
        time.sleep(2)
        assert owned(two) == {0}
        assert len(lines(two, "partitions.assigned")) == 1
