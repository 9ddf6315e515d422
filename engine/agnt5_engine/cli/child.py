"""One child of the supervisor: a processor or a worker, in a process of its own.

`python -m agnt5_engine.cli.child processor|worker MODULE...`, with its settings in the environment. It ends with 0 when
asked to stop, with 2 when its settings or modules cannot be used (starting it again would not help), else with 1.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from agnt5_engine import place  # noqa: F401 - takes its variable out of the environment
from agnt5_engine.cli.exits import FAILED, USAGE

LIFELINE = "AGNT5_CLI_LIFELINE"
"""Number of the inherited end of a pipe that breaks when the supervisor dies, however it dies."""
LEAVE = "AGNT5_CLI_LEAVE"
QUEUE = "AGNT5_CLI_QUEUE"


def command(kind: str, modules: Sequence[str]) -> list[str]:
    """How such a child is started."""
    return [sys.executable, "-m", "agnt5_engine.cli.child", kind, *modules]


def tie_to_supervisor() -> None:
    """Have this process stop (SIGTERM) when its supervisor dies."""
    lifeline = os.environ.pop(LIFELINE, "")
    if lifeline:
        threading.Thread(target=_stop_when_broken, args=(int(lifeline),), daemon=True).start()


def main(arguments: list[str]) -> None:
    kind, *modules = arguments
    gc.disable()  # importing makes much and drops little: looking for garbage would take a tenth of the start
    tie_to_supervisor()
    # These are ours, not settings: gone before the settings look for unknown variables.
    leave, queue = (os.environ.pop(name, "") for name in (LEAVE, QUEUE))
    try:
        from agnt5_engine.settings import load_settings

        _run(_work(kind, load_settings(), modules, bool(leave), queue))
    except (Exception, KeyboardInterrupt) as error:
        _tell(error)


def _tell(error: BaseException) -> None:
    """Exit with the message and code that go with the error. Only here is what writes to a terminal imported."""
    from agnt5_engine.cli.terminal import fail, told
    from agnt5_engine.gateway.listening import AddressError
    from agnt5_engine.transport.base import FencedError, RetriableError, TransportError

    if isinstance(error, AddressError):
        fail(str(error.strerror), USAGE)
    if isinstance(error, (RetriableError, FencedError)):
        fail(str(error))  # another start may fare better
    if isinstance(error, TransportError):
        fail(str(error), USAGE)
    with told():
        raise error


def _work(kind: str, settings: Any, modules: list[str], leave: bool, queue: str) -> Any:
    if kind == "worker":
        from agnt5_engine.queues.worker import run_worker

        return run_worker(settings, modules, queue)
    from agnt5_engine.service import run_processor

    return run_processor(settings, modules, leave=leave)


def _run(work: Any) -> None:
    import asyncio
    from importlib.util import find_spec

    loop_factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work)


def _stop_when_broken(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException as error:
        from typer import Exit

        if isinstance(error, Exit):
            sys.exit(error.exit_code)
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(FAILED)
