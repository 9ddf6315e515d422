"""W8: the steps of W1 over processes and partitions, with where the machine's cores went."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.figures import Finding
from benchmarks.stage import PARTITIONS, Stage
from benchmarks.w1_steps import steps
from benchmarks.work import Work


async def measure(stage: Stage) -> AsyncIterator[Finding]:
    several = stage.sizes.processes if stage.broker is not None else (1,)
    cases = [(processes, PARTITIONS) for processes in several]
    cases += [(1, partitions) for partitions in stage.sizes.partitions if (1, partitions) not in cases]
    for processes, partitions in cases:
        stage.renew(partitions)
        figures = await steps(stage, stage.sizes.scaling_runs, processes)
        name = f"{processes} process{'es' if processes > 1 else ''}, {partitions} partitions"
        yield Finding(name, figures)


WORK = Work("W8", "Scaling", measure)
