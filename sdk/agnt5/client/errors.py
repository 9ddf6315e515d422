"""What a client raises: the API's problems as exceptions, and runs that did not complete."""

from __future__ import annotations

from typing import Any

from agnt5.client.models import Problem, Run
from agnt5.errors import Agnt5Error, InputError, RunError


class ApiError(Agnt5Error):
    """The API refused a request. `status` is the HTTP status, `problem` its problem document; what this kind of problem
    adds (`near`, `answer`, `options` ...) is in `problem.model_extra`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.status = problem.status


class NotFoundError(ApiError, LookupError):
    """No such run, workflow or dead letter."""


class ConflictError(ApiError):
    """The request conflicts with what is there: the run has ended, the question was answered already, the idempotency
    key was used with other input."""


class NotAllowedError(ApiError, PermissionError):
    """The API key is missing, unknown, or may not do this."""


class InvalidError(ApiError, InputError):
    """Something sent is not valid; `fields` maps each field to what is wrong with it."""

    def __init__(self, problem: Problem) -> None:
        ApiError.__init__(self, problem)
        errors: Any = (problem.model_extra or {}).get("errors") or ()
        self.workflow = None
        self.fields = {error["field"]: error["message"] for error in errors if isinstance(error, dict)}


class UnavailableError(Agnt5Error, ConnectionError):
    """No processor answered, or none could do it, for as long as the client's patience lasted."""


class WaitTimeoutError(RunError, TimeoutError):
    """The run had not ended when the `timeout` of the call was over. It goes on; `run` is the run as it stood."""

    def __init__(self, run: Run, timeout: float) -> None:
        super().__init__(run)
        self.args = (f"run {run.run_id} of workflow {run.workflow!r} is {run.status} after {timeout:g} s",)


def refusal(problem: Problem) -> ApiError:
    """The exception for a problem."""
    match problem.status:
        case 401 | 403:
            return NotAllowedError(problem)
        case 404:
            return NotFoundError(problem)
        case 409:
            return ConflictError(problem)
        case 422:
            return InvalidError(problem)
        case _:
            return ApiError(problem)
