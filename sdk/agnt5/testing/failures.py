"""How a test sees a run that did not complete."""

from __future__ import annotations

from agnt5.client.models import Run
from agnt5.errors import RunError, StepError, step_error
from agnt5.replay.protocol import ErrorInfo


def run_error(run: Run, error: ErrorInfo | None) -> RunError:
    """A `RunError` that is also what failed: `except StepError` and `except ValueError` work too, where a step failed
    and where the original type can be imported."""
    if error is None:
        return RunError(run)
    cause = step_error(error)
    kind = type(cause)
    if error.step is None:  # the workflow's own exception
        kind = next((cls for cls in kind.__mro__[1:] if cls not in StepError.__mro__), RunError)
    try:
        blend: type[RunError] = type("RunError", (RunError, kind), {"__module__": RunError.__module__})
        failure = blend.__new__(blend)
        RunError.__init__(failure, run)
    except Exception:  # a type that cannot be combined
        return RunError(run)
    failure.__dict__.update(getattr(cause, "__dict__", {}), run=run)
    return failure
