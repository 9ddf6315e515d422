"""The one tree of errors, and how a failure crosses the log as data and becomes an exception again."""

from __future__ import annotations

import builtins
import importlib
import sys
import traceback as tracebacks
import types
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from agnt5.replay.protocol import ErrorInfo

if TYPE_CHECKING:
    from agnt5.client.models import Run

MESSAGE_LIMIT = 8_000
"""Characters of an exception's text that are kept."""
TRACEBACK_LIMIT = 16_000
"""Characters of a traceback that are kept: its end, where the failure is."""


class Agnt5Error(Exception):
    """Base of everything this package raises on purpose."""


class DefinitionError(Agnt5Error):
    """A decorated function, a trigger or a module cannot be used as written. The message names file and line."""


class FatalError(Agnt5Error):
    """Raise it in a function to fail the step at once: it is not tried again, whatever attempts are left."""


class EncodeError(Agnt5Error, TypeError):
    """A value cannot be kept as JSON (a generator, a lock, NaN), or would come back as something else."""


class StepTimeout(Agnt5Error, TimeoutError):
    """A function ran longer than its `timeout_ms`."""


class NonDeterminismError(Agnt5Error):
    """Today's workflow code does not fit the run's history. The run is parked until fitting code is deployed."""


class InputError(Agnt5Error, ValueError):
    """Input that does not bind to the parameters of a workflow (nothing was started) or of a function.

    `fields` maps each offending field (dotted for nested ones, "" for the input as a whole) to what is wrong."""

    def __init__(self, fields: Mapping[str, str] | str, target: str | None = None) -> None:
        """`target` says what the input was for: "workflow 'order'"."""
        self.fields: dict[str, str] = {"": fields} if isinstance(fields, str) else dict(fields)
        told = "; ".join(f"{name}: {problem}" if name else problem for name, problem in self.fields.items())
        super().__init__(f"the input of {target} does not fit: {told}" if target else told)


class _RecordedFailure(Agnt5Error):
    """What `StepError` and `ChildError` share: a failure that was read from the log."""

    step: str | None
    attempts: int
    error_type: str
    qualified_type: str
    message: str
    traceback: str

    def __init__(
        self, step: str | None, attempts: int = 1, error_type: str = "Exception", message: str = "", traceback: str = ""
    ) -> None:
        Exception.__init__(self, step, attempts, error_type, message)
        self.step = step
        self.attempts = attempts
        self.error_type = short_type(error_type)
        self.qualified_type = error_type
        self.message = message
        self.traceback = traceback

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._told()!r})"

    def __str__(self) -> str:
        return self._told()

    def _told(self) -> str:
        raise NotImplementedError


class StepError(_RecordedFailure):
    """A step failed for good. Also an instance of the exception type that the function raised, where that can be
    imported, so `except ValueError` works.

    Attributes: `step` (name), `attempts` (how often it was tried), `error_type` (name of the original type;
    `qualified_type` with its module, unless builtin), `message`, `traceback` (text)."""

    def _told(self) -> str:
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"step {self.step!r} failed after {tries}: {self.error_type}: {self.message}"


class ChildError(_RecordedFailure):
    """A child run failed. Attributes as in `StepError`; `step` is the child's workflow."""

    def _told(self) -> str:
        return f"child workflow {self.step!r} failed: {self.error_type}: {self.message}"


class RunError(Agnt5Error):
    """A run that was waited for did not complete. `run` is the `Run` as it ended."""

    def __init__(self, run: Run) -> None:
        self.run = run
        error = getattr(run, "error", None)
        why = f": {error.type}: {error.message}" if error is not None else ""
        super().__init__(f"run {run.run_id} of workflow {run.workflow!r} is {run.status}{why}")


# ------------------------------------------------------------------ exception -> data


def type_name(cls: type) -> str:
    """The name by which a type can be imported again; builtins stand for themselves."""
    module = getattr(cls, "__module__", None)
    name = getattr(cls, "__qualname__", None) or cls.__name__
    return str(name) if module in (None, "builtins") else f"{module}.{name}"


def short_type(error_type: str) -> str:
    """The last dotted part: what people see ("shop.errors.CardDeclined" -> "CardDeclined")."""
    return error_type.rpartition(".")[2]


def error_info(exc: BaseException, step: str | None = None, attempts: int = 1) -> ErrorInfo:
    """A failure as data. Never raises, whatever the exception's own `str` or `repr` do; its size is bounded."""
    if isinstance(exc, _RecordedFailure):
        # A step's failure that ends the run keeps naming what failed in the first place.
        return ErrorInfo(
            exc.qualified_type,
            _clip(exc.message, MESSAGE_LIMIT),
            _clip_start(exc.traceback or _traceback_text(exc), TRACEBACK_LIMIT),
            step if step is not None else exc.step,
            exc.attempts if step is None else attempts,
        )
    return ErrorInfo(
        _clip(type_name(type(exc)), 500),
        _clip(_message(exc), MESSAGE_LIMIT),
        _clip_start(_traceback_text(exc), TRACEBACK_LIMIT),
        step,
        attempts,
    )


def _message(exc: BaseException) -> str:
    for text in (str, repr):
        try:
            return _printable(text(exc))
        except Exception:
            continue
    return f"<{type(exc).__name__} that cannot be printed>"


def _traceback_text(exc: BaseException) -> str:
    try:
        message = _message(exc)
        if len(message) > MESSAGE_LIMIT:  # the text would push the frames out
            return f"{_frames_only(exc.__traceback__)}{type_name(type(exc))}: {_clip(message, MESSAGE_LIMIT)}"
        return _printable("".join(tracebacks.format_exception(exc, limit=-30)))
    except Exception:
        return _frames_only(exc.__traceback__)


def _frames_only(trace: TracebackType | None) -> str:
    try:
        return _printable("".join(tracebacks.format_tb(trace, limit=-30)))
    except Exception:
        return ""


def _printable(text: str) -> str:
    """Text that UTF-8 can hold: an exception may quote a lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _clip_start(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]


# ------------------------------------------------------------------ data -> exception


def is_final(info: ErrorInfo) -> bool:
    """Whether a run that failed like this is not to be retried: it raised FatalError, or its input did not fit."""
    if info.type in (type_name(FatalError), type_name(InputError)):
        return True
    original = _import_exception(info.type)
    return original is not None and issubclass(original, (FatalError, InputError))


def step_error(info: ErrorInfo) -> Exception:
    """A `StepError` that is also an instance of the original exception's type, where that can be imported."""
    return _rebuild(StepError, info)


def child_error(info: ErrorInfo) -> Exception:
    """A `ChildError`, with the original type as `step_error` has it."""
    return _rebuild(ChildError, info)


def _rebuild(kind: type[_RecordedFailure], info: ErrorInfo) -> Exception:
    original = _import_exception(info.type)
    blend = kind if original is None else _blend(kind, original)
    try:
        failure = blend.__new__(blend)
        _RecordedFailure.__init__(failure, info.step, info.attempts, info.type, info.message, info.traceback)
    except Exception:  # a __new__ that wants arguments; the plain kind tells everything but the type
        failure = kind(info.step, info.attempts, info.type, info.message, info.traceback)
    return failure


_blends: dict[tuple[type[_RecordedFailure], type[Exception]], type[_RecordedFailure]] = {}


def _blend(kind: type[_RecordedFailure], original: type[Exception]) -> type[_RecordedFailure]:
    """`kind` and `original` as one class, made once; `kind` alone where Python cannot combine them."""
    known = _blends.get((kind, original))
    if known is None:
        if len(_blends) >= 512:  # types of modules that were reloaded
            _blends.clear()
        known = _blends[kind, original] = _new_blend(kind, original)
    return known


def _new_blend(kind: type[_RecordedFailure], original: type[Exception]) -> type[_RecordedFailure]:
    if original in kind.__mro__:
        return kind
    # The original's constructor never runs, so nothing of it that expects its own fields may be reached:
    # properties of the same names, a frozen __setattr__, an __eq__ over fields.
    body = {
        "__module__": kind.__module__,
        "__setattr__": object.__setattr__,
        "__eq__": object.__eq__,
        "__hash__": object.__hash__,
        **dict.fromkeys(("step", "attempts", "error_type", "qualified_type", "message", "traceback")),
    }
    try:
        made = types.new_class(kind.__name__, (kind, original), None, lambda namespace: namespace.update(body))
    except Exception:  # layouts or metaclasses that conflict, a final type, an __init_subclass__ that objects
        return kind
    return cast("type[_RecordedFailure]", made)


def _import_exception(name: str) -> type[Exception] | None:
    """The exception type of that name, looked up afresh each time: a reload may have replaced it."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None  # defined inside a function
    if len(parts) == 1:
        return _exception_in(builtins, parts)
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        module = sys.modules.get(module_name)
        if module is None:
            try:
                module = importlib.import_module(module_name)
            except Exception:  # no such module, or one that does not import here
                continue
        return _exception_in(module, parts[end:])
    return None


def _exception_in(module: types.ModuleType, path: list[str]) -> type[Exception] | None:
    found: Any = module
    for part in path:
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    # These end a generator: inside a coroutine Python turns them into a RuntimeError.
    return None if issubclass(found, (StopIteration, StopAsyncIteration)) else found
