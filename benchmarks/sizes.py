"""How much of everything is done: the same works from a smoke test to a long measurement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """`heavy_repeats`: how often the largest cases are repeated, which take as long as all others together. `settle`:
    seconds after which a checkpoint has been written and idle runs have left memory. `warm_seconds`: how long a
    broker serves small appends before it is measured."""

    repeats: int = 5
    heavy_repeats: int = 1
    warm_runs: int = 500
    warm_seconds: float = 12.0
    acks: int = 2_000
    records: int = 200_000
    runs: int = 5_000
    steps: int = 10
    one_at_a_time: int = 300
    fan_out: int = 1_000
    batch: int = 10_000
    batch_at_once: int = 1_000
    submits: int = 5_000
    connections: int = 50
    events: int = 50_000
    sleepers: int = 10_000
    heavy_sleepers: int = 100_000
    in_flight: int = 500
    step_seconds: float = 0.15
    session_timeout: float = 6.0
    lengths: tuple[int, ...] = (10, 100, 1_000, 10_000)
    finished: tuple[int, ...] = (1_000, 10_000)
    heavy_finished: tuple[int, ...] = (100_000,)
    scaling_runs: int = 1_500
    settle: float = 2.5
    processes: tuple[int, ...] = (1, 2, 4)
    partitions: tuple[int, ...] = (4, 8, 32)


DEFAULT = Sizes()
FULL = Sizes(heavy_repeats=5, scaling_runs=5_000, heavy_finished=(100_000, 1_000_000))
QUICK = Sizes(
    repeats=2, heavy_repeats=0, warm_runs=100, warm_seconds=5.0, acks=300, records=20_000, runs=500,
    one_at_a_time=50, fan_out=300, batch=1_000, submits=500, events=2_000, sleepers=500, in_flight=100,
    session_timeout=2.0, lengths=(10, 100, 1_000), finished=(100, 1_000), scaling_runs=200,
    processes=(1, 2), partitions=(4, 8),
)  # fmt: skip
TINY = Sizes(
    repeats=1, heavy_repeats=0, warm_runs=5, warm_seconds=0.2, acks=20, records=500, runs=2_000, steps=3,
    one_at_a_time=3, fan_out=20, batch=40, batch_at_once=10, submits=20, connections=4, events=2_000,
    sleepers=20, in_flight=10, step_seconds=0.1,
    session_timeout=2.0, lengths=(5, 20), finished=(20,), scaling_runs=1_500, settle=0.3, processes=(1,),
    partitions=(8,),
)  # fmt: skip
NAMED = {"default": DEFAULT, "full": FULL, "quick": QUICK, "tiny": TINY}
