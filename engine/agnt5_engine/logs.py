"""Log lines as events with fields, to stderr: JSON for machines, a console form on a terminal, never a secret.

Modules log with `structlog.stdlib.get_logger(__name__)`: `log.info("partition.recovered", partition=3, rows=512)`. What
belongs to one run or partition is bound once around the work (`bound(run_id=...)`) and is on every line inside it.
Libraries that use `logging` come out in the same form.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
from pydantic import SecretBytes, SecretStr
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from agnt5_engine.printable import printable
from agnt5_engine.records.sealing import written_keys
from agnt5_engine.settings import Settings

MASK = "***"

# Part of a field's name that says its value is nobody's business.
_SECRET_FIELD = re.compile(
    r"password|passwd|secret|token|credential|authorization|signature|api[_-]?key|cookie", re.IGNORECASE
)
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")

# These log every connection and heartbeat; their warnings are enough unless someone debugs.
_TALKATIVE = ("aiokafka", "asyncio", "faust", "httpcore", "httpx", "kafka", "mode", "uvicorn", "watchfiles")


def bound(**fields: Any) -> AbstractContextManager[Any]:
    """Put `fields` (run_id, partition ...) on every event logged inside the block, by this task and those it starts."""
    return bound_contextvars(**fields)


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up logging for this process, once, before anything logs. `stream` is stderr unless given."""
    out = stream or sys.stderr
    console = settings.log_format == "console" or (settings.log_format == "auto" and out.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    render: list[Processor] = (
        [
            structlog.processors.format_exc_info,
            _shown,
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                timestamp_key="time",
                # The default one prints local variables, which may hold anything.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
        if console
        else [structlog.processors.format_exc_info, _ordered, structlog.processors.JSONRenderer(default=str)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            mask_fields,
            *render,
            _Scrubber(_secret_values(settings)),
        ],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    if level > logging.DEBUG:
        handler.addFilter(_no_service_chatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET if level <= logging.DEBUG else max(level, logging.WARNING))
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        # structlog's own factory would exchange the logger class of the whole process.
        logger_factory=logging.getLogger,
        cache_logger_on_first_use=True,
    )


def _no_service_chatter(record: logging.LogRecord) -> bool:
    """Faust's services tell of their start and stop under the name of the module that defines them, which may be ours;
    what we log ourselves comes as a dict."""
    ours = record.name.startswith("agnt5_engine") and not isinstance(record.msg, dict)
    return not ours or record.levelno >= logging.WARNING


def mask_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what must not be read: fields named like secrets, secret types, passwords inside URLs."""
    for name, value in event.items():
        if _SECRET_FIELD.search(name) and value is not None and not isinstance(value, (bool, int, float)):
            event[name] = MASK
        else:
            event[name] = _masked(value)
    return event


def _masked(value: Any) -> Any:
    match value:
        case str():
            return _USERINFO.sub(f"{MASK}@", value) if "://" in value else value
        case SecretStr() | SecretBytes():
            return MASK
        case dict():
            return {
                key: MASK if isinstance(key, str) and _SECRET_FIELD.search(key) else _masked(item)
                for key, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_masked(item) for item in value]
        case bytes():
            # A payload or a key: its size says enough.
            return f"<{len(value)} bytes>"
        case _:
            return value


def _shown(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Text may come from outside: it neither commands the terminal nor begins a line that looks like an event's."""
    for name, value in event.items():
        if isinstance(value, str):
            text = printable(value)
            # Other fields are quoted when they have several lines.
            event[name] = text.replace("\n", "\n    ") if name in ("event", "exception") else text
    return event


def _ordered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What a person reads first comes first."""
    first = {name: event.pop(name) for name in ("time", "level", "event", "logger") if name in event}
    return {**first, **event}


class _Scrubber:
    """The last step: known secrets are cut out of the finished line, wherever they came from (a traceback, say)."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1])}
        self._pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def __call__(self, _logger: WrappedLogger, _method: str, line: Any) -> Any:
        return self._pattern.sub(MASK, line) if self._pattern and isinstance(line, str) else line


def _secret_values(settings: Settings) -> list[str]:
    found = [settings.kafka_sasl_password, settings.kafka_ssl_key_password, settings.api_key]
    for secrets in settings.webhook_secrets.values():
        found += secrets
    values = [secret.get_secret_value() for secret in found if secret]
    if settings.payload_keys:
        values += [encoded for _, encoded in written_keys(settings.payload_keys.get_secret_value())]
    # Shorter ones would blacken ordinary words.
    return [value for value in values if len(value) >= 6]
