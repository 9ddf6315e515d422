"""What a function may know and say while it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

_logger = logging.getLogger("agnt5.function")


class FunctionContext:
    """Handed to a function as `ctx` by whoever runs it. All of it may be used from the function's thread.

    - `run_id`, `session_id`, `user_id`, `workflow_name`, `metadata`: of the run that called the function
    - `name`: the function's name; `attempt`: 0 for the first, 1 for the first retry
    - `idempotency_key`: the same for every attempt of this step, in whatever process: hand it to services that can
      refuse a repeat
    - `logger`: a standard logger whose records carry the run and the step
    - `cancelled`: True once the run no longer wants the result; a long plain `def` looks at it now and then
    """

    __slots__ = (
        "_heartbeat",
        "_logger",
        "_progress",
        "attempt",
        "cancelled",
        "idempotency_key",
        "metadata",
        "name",
        "run_id",
        "session_id",
        "user_id",
        "workflow_name",
    )

    def __init__(
        self,
        *,
        name: str,
        run_id: str = "",
        session_id: str | None = None,
        user_id: str | None = None,
        workflow_name: str = "",
        attempt: int = 0,
        idempotency_key: str = "",
        metadata: Mapping[str, str] | None = None,
        logger: Any = None,
        on_progress: Callable[[float | None, str | None], None] | None = None,
        on_heartbeat: Callable[[Any], None] | None = None,
    ) -> None:
        self.name = name
        self.run_id = run_id
        self.session_id = run_id if session_id is None else session_id
        self.user_id = self.session_id if user_id is None else user_id
        self.workflow_name = workflow_name
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self.metadata: Mapping[str, str] = {} if metadata is None else metadata
        self.cancelled = False
        self._logger = logger
        self._progress = on_progress
        self._heartbeat = on_heartbeat

    @property
    def logger(self) -> Any:
        if self._logger is None:
            fields = {"run_id": self.run_id, "workflow": self.workflow_name, "step": self.name, "attempt": self.attempt}
            self._logger = logging.LoggerAdapter(_logger, fields)
        return self._logger

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Tell whoever watches the run live; nothing is recorded. `fraction` is from 0 to 1."""
        if self._progress is not None:
            self._progress(fraction, message)

    def heartbeat(self, details: Any = None) -> None:
        """Say that the function is alive, so that a worker pool does not give its step to another worker."""
        if self._heartbeat is not None:
            self._heartbeat(details)

    def __repr__(self) -> str:
        return f"<FunctionContext {self.name!r} of run {self.run_id!r}, attempt {self.attempt}>"
