"""Where a processor's main thread spends its time: its stack, looked at with every tick of the kernel while it works.

Part of the process that is measured (`flows.py` starts it), by the interval timer of POSIX: a sampler from outside
stops the process where it enters the kernel, and sees system calls in every sixth place. SIGUSR1 begins, SIGUSR2 ends
and writes what was counted.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

FILE = "BENCH_SAMPLES"
"""The environment variable that names the file for the counts."""
_SECONDS = 0.002

WHOLE = {"Checkpoints._run": "checkpoint"}
"""Whatever is done for these, wherever: by the function's name."""
PLACES = (
    ("user code", ("benchmarks/",)),
    ("Avro", ("agnt5_engine/records/", "<Avro")),
    ("JSON and types", ("agnt5/codec.py", "agnt5/function.py", "agnt5/binding.py", "agnt5/workflow.py", "/pydantic")),
    ("replay", ("agnt5/replay/", "agnt5/context.py", "agnt5/registry.py", "agnt5/state.py")),
    ("steps", ("partition/steps.py", "agnt5/execute.py", "agnt5/functioncontext.py", "partition/gates.py")),
    ("apply", ("agnt5_engine/runs/", "partition/owner.py", "partition/live.py", "partition/timers.py", "/table.py")),
    (
        "append",
        ("partition/appender.py", "partition/sender.py", "agnt5_engine/transport/", "/aiokafka/", "publisher.py"),
    ),
    ("HTTP", ("/gateway/", "/uvicorn/", "/starlette/", "/fastapi/")),
    ("events in", ("/triggers/", "ingest.py", "starter.py", "/serving/", "processor.py", "/faust/", "/mode/")),
)
"""Parts by the files of their code; the innermost frame that is in one of them counts."""
OTHER = "event loop and the rest"


class Sampler:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}
        signal.signal(signal.SIGPROF, self._look)
        signal.signal(signal.SIGUSR1, lambda *_: self._begin())
        signal.signal(signal.SIGUSR2, lambda *_: self._end())

    def _begin(self) -> None:
        self._counts.clear()
        signal.setitimer(signal.ITIMER_PROF, _SECONDS, _SECONDS)

    def _end(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._counts))
        part.rename(self._file)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        found = None
        while frame is not None:
            code = frame.f_code
            whole = WHOLE.get(code.co_qualname)
            if whole is not None:
                found = whole
                break
            found = found or self._place(code.co_filename)
            frame = frame.f_back
        self._counts[found or OTHER] += 1

    def _place(self, filename: str) -> str | None:
        if filename not in self._known:
            self._known[filename] = next(
                (name for name, parts in PLACES if any(part in filename for part in parts)), None
            )
        return self._known[filename]


def start() -> None:
    """Where the environment asks for it."""
    if FILE in os.environ:
        Sampler(Path(os.environ.pop(FILE)))
