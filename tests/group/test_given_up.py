"""A child that the supervisor gives up leaves the group at once, not when its session has expired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.group.world import group_of, lines, owned, until

# The command itself, less patient with a child that keeps dying.
COMMAND = """
import sys
from agnt5_engine.cli import supervisor
supervisor.FIRST_DELAY, supervisor.QUICK_SECONDS, supervisor.QUICK_DEATHS = 0.01, 600, 2
from agnt5_engine.cli.root import app
app(["processor", sys.argv[1], "--processes", "2"])
"""

# The second child dies whenever it is loaded while there is a file "die".
DYING = """
import os, pathlib
if os.environ["AGNT5_INSTANCE_ID"] == "one-1":
    folder = pathlib.Path(__file__).parent
    if (folder / "die").exists():
        os._exit(9)
    (folder / "pid").write_text(str(os.getpid()))
"""


def test_what_a_child_had_that_died_for_good_goes_to_the_others_long_before_its_session_expires(
    kafka: str, tmp_path: Path
) -> None:
    session = 300
    with group_of(kafka, tmp_path, session_timeout=session, instance_id="one") as group:
        group.module.write_text(DYING + group.module.read_text())
        group.create()
        first = group.processor()
        with first.log.open("ab") as log:
            first.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(group.module)], env=first.env, stdout=log, stderr=log
            )
        until(lambda: len(lines(first, "http.listening")) == 2, first.tail)
        second = group.processor()
        (second.url,) = {str(line["url"]) for line in lines(first, "http.listening")} - {first.url}
        group.wait_shared(first, second)
        group.produce(0, 100)
        group.wait_completed(first, 100)
        (tmp_path / "die").touch()
        killed = time.monotonic()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        until(lambda: owned(first) == {0, 1}, first.tail, session / 2)
        print(f"taken over after {time.monotonic() - killed:.1f} s (session timeout {session} s)")
        group.produce(100, 50)
        assert group.wait_completed(first, 150) == dict.fromkeys(range(150), 1)
        assert "its place is given up" in first.tail(200)
        assert "one-1 has left the group" in first.tail(200)
        first.stop()
        assert first.process.returncode == 1, "a place was given up"
