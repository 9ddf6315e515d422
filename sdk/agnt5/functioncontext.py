"""What a function may know and say while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from agnt5.live_logger import LiveLogger


class FunctionContext:
    """Handed to a function as `ctx` by whoever runs it. All of it may be used from the function's thread.

    - `run_id`, `session_id`, `user_id`, `workflow_name`, `metadata`: of the run that called the function
    - `name`: the function's name; `attempt`: 0 for the first, 1 for the first retry
    - `idempotency_key`: the same for every attempt of this step, in whatever process: hand it to services that can
      refuse a repeat
    - `logger`: a standard logger whose records carry the run and the step; live streams get them too
    - `cancelled`: True once the run no longer wants the result; a long plain `def` looks at it now and then
    """

    __slots__ = (
        "_heartbeat",
        "_log",
        "_logger",
        "_loop",
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
        on_progress: Callable[[float | None, str | None], None] | None = None,
        on_heartbeat: Callable[[Any], None] | None = None,
        on_log: Callable[[str, str, dict[str, Any]], None] | None = None,
    ) -> None:
        """The callbacks are called on the driver's loop: `on_log` with level, message and fields."""
        self.name = name
        self.run_id = run_id
        self.session_id = run_id if session_id is None else session_id
        self.user_id = self.session_id if user_id is None else user_id
        self.workflow_name = workflow_name
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self.metadata: Mapping[str, str] = {} if metadata is None else metadata
        self.cancelled = False
        self._logger: LiveLogger | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._progress = on_progress
        self._heartbeat = on_heartbeat
        self._log = on_log

    @property
    def logger(self) -> LiveLogger:
        if self._logger is None:
            fields = {"run_id": self.run_id, "workflow": self.workflow_name, "step": self.name, "attempt": self.attempt}
            self._logger = LiveLogger("agnt5.function", fields, lambda: None if self._log is None else self._line)
        return self._logger

    def _line(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self._tell(self._log, level, message, {"step": self.name, **fields})

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Tell whoever watches the run live; nothing is recorded. `fraction` is from 0 to 1."""
        if fraction is not None and (isinstance(fraction, bool) or not isinstance(fraction, (int, float))):
            raise TypeError(f"fraction must be a number from 0 to 1, not {fraction!r}")
        self._tell(self._progress, fraction, message)

    def heartbeat(self, details: Any = None) -> None:
        """Say that the function is alive, so that a worker pool does not give its step to another worker."""
        self._tell(self._heartbeat, details)

    def enter_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the function runs in a thread of its own; what it tells goes to `loop`."""
        self._loop = loop

    def _tell(self, callback: Callable[..., None] | None, *what: Any) -> None:
        if callback is None:
            return
        if self._loop is None:
            callback(*what)
            return
        try:
            self._loop.call_soon_threadsafe(callback, *what)
        except RuntimeError:  # closed: a function that was given up outlived it
            return

    def __repr__(self) -> str:
        return f"<FunctionContext {self.name!r} of run {self.run_id!r}, attempt {self.attempt}>"
