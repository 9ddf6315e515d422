"""What `ctx.logger` is, in functions and in workflows: a standard logger that live streams listen to."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

Told = Callable[[str, str, dict[str, Any]], None]
"""Takes a line: level, message, fields."""


class LiveLogger(logging.LoggerAdapter[logging.Logger]):
    """Its records carry `fields`. `listener()` gives whoever is to be told of each line, or None. While `silent()` is
    true, nobody is told and nothing is logged."""

    def __init__(
        self,
        name: str,
        fields: dict[str, Any],
        listener: Callable[[], Told | None],
        silent: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(logging.getLogger(name), fields)
        self._listener = listener
        self._silent = silent

    def isEnabledFor(self, level: int) -> bool:  # the standard library's name
        if self._silent is not None and self._silent():
            return False
        return self._listener() is not None or self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As in the standard library: `%` arguments, `extra`, `exc_info`."""
        if self._silent is not None and self._silent():
            return
        told = self._listener()
        if told is not None:
            fields: dict[str, Any] = dict(kwargs.get("extra") or {})
            if kwargs.get("exc_info"):
                fields["traceback"] = traceback.format_exc()
            told(logging.getLevelName(level).lower(), _text(msg, args), fields)
        if self.logger.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            _, changed = self.process(msg, kwargs)
            self.logger.log(level, msg, *args, **changed)


def _text(msg: object, args: tuple[object, ...]) -> str:
    """The message with its arguments; both as they are when they do not fit, which must not fail the function."""
    text = str(msg)
    if not args:
        return text
    values: Any = args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args
    try:
        return str(text % values)
    except (TypeError, ValueError, KeyError):
        return f"{text} {args!r}"
