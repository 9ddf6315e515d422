"""How a run's code ended, and what is wrong with code that cannot end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agnt5.errors import error_info
from agnt5.replay.entries import Operation, described_site
from agnt5.replay.protocol import Completed, Errored, Outcome, Stopped

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation
    from agnt5.replay.entries import Branch


def outcome_of(activation: Activation, root: asyncio.Task[Any]) -> Outcome:
    """What the finished root task says. An output that cannot be kept, or a forgotten operation, is a failure."""
    if root.cancelled():
        if activation.cancel_told:
            return Stopped()
        return Errored(error_info(asyncio.CancelledError("the workflow was cancelled by its own code")))
    error = root.exception()
    if error is not None:
        return Errored(error_info(error))
    forgotten = [operation for operation in activation.unasked.values() if not _broken(operation.branch)]
    if forgotten:
        return Errored(error_info(_never_awaited(forgotten)))
    try:
        return Completed(activation.checked(activation.workflow.encode_output(root.result()), "the workflow's output"))
    except Exception as failure:
        return Errored(error_info(failure))


def _broken(branch: Branch | None) -> bool:
    """A branch that ended by an error or a cancel did not get to await everything; that is no mistake of its code."""
    task = None if branch is None else branch.task
    return task is not None and (not task.done() or task.cancelled() or task.exception() is not None)


def _never_awaited(forgotten: list[Operation[Any]]) -> RuntimeError:
    told = sorted(f"{operation.described()} at {described_site(operation.site)}" for operation in forgotten)
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    return RuntimeError(f"never awaited: {'; '.join(told[:5])}{more}. Write `await` before it")


def deadlock(activation: Activation) -> Errored:
    """The code waits, and nothing that could wake it is open."""
    root = activation.root
    thing: Any = None if root is None else root.get_coro()
    where = ""
    while thing is not None:  # to the innermost coroutine of the user's
        frame = getattr(thing, "cr_frame", None)
        if frame is not None:
            where = f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        thing = getattr(thing, "cr_await", None)
    error = RuntimeError(
        f"the workflow waits{where} for something that can never happen: no step, timer, question, signal or child "
        "run is open. A future or queue that nothing will fill, or tasks that wait for each other, do this"
    )
    return Errored(error_info(error))
