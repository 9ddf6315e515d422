"""What may be committed: never past a command that is still open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agnt5_engine.queues.positions import Positions
from agnt5_engine.queues.topics import steps_spec
from agnt5_engine.settings import load_settings


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.randoms(use_true_random=False), st.integers(0, 40))
def test_everything_before_the_committed_offset_is_finished_and_no_more_is_kept_open_than_needed(
    steps: list[int], random: object, count: int
) -> None:
    offset, offsets = 7, []
    positions = Positions(7)
    for step in steps:
        positions.add(offset)
        offsets.append(offset)
        offset += step  # there are gaps
    order = list(offsets)
    random.shuffle(order)  # type: ignore[attr-defined]
    finished = set(order[:count])
    for one in finished:
        positions.finish(one)
        positions.finish(one)

    still_open = [one for one in offsets if one not in finished]
    assert positions.done == (still_open[0] if still_open else offsets[-1] + 1)
    assert positions.gap == sum(one > positions.done for one in finished)
    assert positions.reached == max((one for one in finished if one > positions.done), default=-1)


def test_commands_wait_for_a_pool_for_a_week_however_soon_finished_runs_are_forgotten() -> None:
    week = 7 * 86_400_000
    assert (steps_spec(load_settings(run_retention=60), "gpu").retention_ms or 0) >= week
    assert (steps_spec(load_settings(run_retention=30 * 86_400), "gpu").retention_ms or 0) > week
