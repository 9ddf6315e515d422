"""`ctx.logger` of a workflow: silent while history is replayed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

_logger = logging.getLogger("agnt5.workflow")


class WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """A standard logger whose records carry the run; live streams get them too."""

    def __init__(self, activation: Activation) -> None:
        info = activation.info
        super().__init__(_logger, {"run_id": info.run_id, "workflow": info.workflow})
        self._activation = activation

    def isEnabledFor(self, level: int) -> bool:  # the standard library's name
        return not self._activation.replaying and (
            self._activation.listener is not None or self.logger.isEnabledFor(level)
        )

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As in the standard library: `%` arguments, `extra`, `exc_info`."""
        if self._activation.replaying:
            return
        listener = self._activation.listener
        if listener is not None:
            fields: dict[str, Any] = dict(kwargs.get("extra") or {})
            if kwargs.get("exc_info"):
                fields["traceback"] = traceback.format_exc()
            listener.log(logging.getLevelName(level).lower(), _text(msg, args), fields)
        if self.logger.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            msg, kwargs = self.process(msg, kwargs)  # type: ignore[assignment]
            self.logger.log(level, msg, *args, **kwargs)


def _text(msg: object, args: tuple[object, ...]) -> str:
    text = str(msg)
    if not args:
        return text
    values: Any = args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args
    try:
        return str(text % values)
    except (TypeError, ValueError, KeyError):
        return f"{text} {args!r}"
