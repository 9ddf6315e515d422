"""What must be reached, on two cores that broker, processor and load share. Ratios hold on any machine; absolute
numbers are indications."""

from __future__ import annotations

import re
from typing import NamedTuple


class Target(NamedTuple):
    """`case`: a pattern. The median of `figure` must be at most, or at least, `bound`."""

    work: str
    side: str
    case: str
    figure: str
    at_most: bool
    bound: float

    def met(self, median: float) -> bool:
        return median <= self.bound if self.at_most else median >= self.bound


TARGETS = (
    Target("W1", "kafka", ".", "steps_per_s", False, 20_000),
    Target("W1", "kafka", ".", "processor_cpu_us_per_step", True, 45),
    Target("W1", "embedded", ".", "steps_per_s", False, 10_000),
    Target("W2", "kafka", ".", "step_p50_over_ack_p50", True, 2.0),
    Target("W2", "kafka", ".", "run_p50_ms", True, 10),
    Target("W3", "kafka", "^1,000 parallel", "wall_ms", True, 150),
    Target("W4", "kafka", "HTTP", "starts_per_s", False, 2_000),
    Target("W4", "kafka", "events", "starts_per_s", False, 15_000),
    Target("W5", "kafka", "^100,000", "asleep_over_idle_mb", True, 200),
    Target("W5", "kafka", "^10,000", "late_p99_ms", True, 500),
    Target("W6", "kafka", "restarted", "last_moving_s", True, 1.5),
    Target("W6", "kafka", "taken over", "last_moving_after_session_timeout_s", True, 2),
    Target("W6", "", ".", "completed_steps_executed_again", True, 0),
    Target("W6", "", ".", "runs_lost", True, 0),
)


def target(work: str, side: str, case: str, figure: str) -> Target | None:
    for one in TARGETS:
        if one.work == work and one.figure == figure and one.side in ("", side) and re.search(one.case, case):
            return one
    return None
