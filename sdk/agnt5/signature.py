"""What a decorated function declares: its parameters, their annotations resolved, and where it is written."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from agnt5.codec import Codec, codec_for
from agnt5.errors import DefinitionError

EMPTY: Any = inspect.Parameter.empty


class Declaration:
    """One function as it is written.

    `names` of types may be defined after it (or only inside an enclosing function), so annotations are resolved when
    they are first needed."""

    __slots__ = ("_codecs", "_names", "fn", "has_ctx", "parameters", "signature")

    def __init__(self, fn: Callable[..., Any], enclosing: Mapping[str, Any] | None = None) -> None:
        self.fn = fn
        try:
            signature = inspect.signature(fn)
        except (TypeError, ValueError):
            raise DefinitionError(f"{place(fn)}: Python cannot tell the parameters of {fn!r}") from None
        parameters = list(signature.parameters.values())
        self.has_ctx = bool(parameters) and _is_ctx(parameters[0])
        if self.has_ctx:
            parameters = parameters[1:]
        self.parameters = parameters
        self.signature = signature.replace(parameters=parameters)
        self._names = enclosing
        self._codecs: dict[str, Codec] = {}

    @property
    def place(self) -> str:
        """file:line of the definition."""
        return place(self.fn)

    def annotation(self, name: str) -> Any:
        """The annotation of a parameter, or of "return", as a type; Any when there is none. Raises DefinitionError."""
        signature = self.signature
        raw = signature.return_annotation if name == "return" else signature.parameters[name].annotation
        if raw is EMPTY:
            return Any
        if isinstance(raw, type) and not hasattr(raw, "__args__"):
            return _repeatable(raw)
        inner = inspect.unwrap(self.fn)
        inner = getattr(inner, "func", inner)  # functools.partial
        holder = type("Holder", (), {"__annotations__": {name: raw}})
        try:
            hints = get_type_hints(holder, self._globals(inner), self._locals(inner), include_extras=True)
            return _repeatable(hints[name])
        except NameError as error:
            where = "return annotation" if name == "return" else f"annotation of parameter {name!r}"
            raise DefinitionError(
                f"{self.place}: the {where} of {self.fn.__qualname__} cannot be resolved: {error}. Import that name "
                "when the program runs, not only under TYPE_CHECKING"
            ) from None

    def codec(self, name: str) -> Codec:
        """The codec of a parameter, or of "return". Raises DefinitionError."""
        found = self._codecs.get(name)
        if found is None:
            found = self._codecs[name] = codec_for(self.annotation(name))
        return found

    @staticmethod
    def _globals(fn: Any) -> dict[str, Any]:
        found = getattr(fn, "__globals__", None)
        if found is None:
            found = vars(sys.modules.get(getattr(fn, "__module__", ""), sys))
        return cast("dict[str, Any]", found)

    def _locals(self, fn: Any) -> dict[str, Any]:
        names = dict(self._names or {})
        code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
        for name, cell in zip(code.co_freevars if code else (), cells or (), strict=False):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        return names


def _repeatable(annotation: Any) -> Any:
    """`Iterable[X]` as a list: pydantic makes an iterator of it, which can be gone through once and never kept."""
    origin, args = get_origin(annotation), get_args(annotation)
    if (origin or annotation) is Iterable:
        return list[args or (Any,)]  # type: ignore[misc]  # made at run time
    if origin in (Union, UnionType) and (members := tuple(map(_repeatable, args))) != args:
        return reduce(or_, members)
    return annotation


def _is_ctx(parameter: inspect.Parameter) -> bool:
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        return False
    annotation = parameter.annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return parameter.name == "ctx" or str(named).rpartition(".")[2] in ("FunctionContext", "WorkflowContext")


def enclosing_names(fn: Callable[..., Any], depth: int) -> Mapping[str, Any] | None:
    """The local names at the place of decoration, `depth` frames up; None at module level, where globals do."""
    if "<locals>" not in getattr(fn, "__qualname__", ""):
        return None
    return dict(sys._getframe(depth).f_locals)


def place(fn: Any) -> str:
    """file:line where a function is written, the file relative to the working directory when it is below it."""
    inner = inspect.unwrap(getattr(fn, "func", fn))
    code = getattr(inner, "__code__", None)
    if code is None:
        return f"module {getattr(inner, '__module__', '?')}"
    return f"{shown_path(code.co_filename)}:{code.co_firstlineno}"


def shown_path(filename: str) -> str:
    """A path as short as it can be read."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return filename
