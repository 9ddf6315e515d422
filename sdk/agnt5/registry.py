"""What this process knows how to run: every workflow and function, by name, from the moment its module is imported."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from agnt5.errors import Agnt5Error, DefinitionError
from agnt5.signature import place

if TYPE_CHECKING:
    from agnt5.function import Function
    from agnt5.workflow import Workflow

_workflows: dict[str, Workflow[Any]] = {}
_functions: dict[str, Function[Any]] = {}


class Snapshot(NamedTuple):
    """What was registered at some moment, to come back to."""

    workflows: dict[str, Workflow[Any]]
    functions: dict[str, Function[Any]]


class LoadError(Agnt5Error):
    """A module named on the command line, or in a setting, could not be imported. The message says why."""


def workflows() -> dict[str, Workflow[Any]]:
    """Every registered workflow, by name, in the order of definition."""
    return dict(_workflows)


def functions() -> dict[str, Function[Any]]:
    """Every registered function, by name, in the order of definition."""
    return dict(_functions)


def workflow(name: str) -> Workflow[Any]:
    """Raises LookupError that names near ones."""
    found = _workflows.get(name)
    return found if found is not None else _missing("workflow", name, _workflows)


def function(name: str) -> Function[Any]:
    """Raises LookupError that names near ones."""
    found = _functions.get(name)
    return found if found is not None else _missing("function", name, _functions)


def find_workflow(name: str) -> Workflow[Any] | None:
    return _workflows.get(name)


def find_function(name: str) -> Function[Any] | None:
    return _functions.get(name)


def near(name: str, known: Iterable[str]) -> list[str]:
    """Known names that look like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def _missing(kind: str, name: str, known: dict[str, Any]) -> Any:
    like = near(name, known)
    if like:
        hint = f"did you mean {' or '.join(map(repr, like))}?"
    else:
        hint = f"is the module that defines it loaded? Known: {', '.join(sorted(known)) or 'none'}"
    raise LookupError(f"no {kind} is called {name!r}; {hint}")


# ------------------------------------------------------------------ registering


def check_name(kind: str, name: object, where: str) -> str:
    """A name that can be part of a URL, a record and a metric's label. Raises DefinitionError."""
    if not isinstance(name, str):
        raise DefinitionError(f"{where}: the name of a {kind} must be text, not {name!r}")
    if name == "<lambda>":
        raise DefinitionError(f"{where}: a lambda has no name of its own; write {kind}(name=...)")
    if not 0 < len(name) <= 200 or not all(c.isalnum() or c in "._-" for c in name):
        raise DefinitionError(
            f"{where}: {kind} name {name!r}: use letters, digits, '.', '_' and '-', at most 200 of them"
        )
    return name


def add_workflow(definition: Workflow[Any], defined_by: CodeType | None = None) -> None:
    """Raises DefinitionError when another definition has the name. `defined_by`: the code that ran the decorator."""
    _add("workflow", definition, _workflows, defined_by)


def add_function(definition: Function[Any], defined_by: CodeType | None = None) -> None:
    """As `add_workflow`."""
    _add("function", definition, _functions, defined_by)


def _add(kind: str, definition: Any, known: dict[str, Any], defined_by: CodeType | None) -> None:
    before = known.get(definition.name)
    if before is not None and not _defined_again(before.fn, definition.fn, defined_by):
        raise DefinitionError(
            f"two {kind}s are called {definition.name!r}: {place(before.fn)} and {place(definition.fn)}; "
            f"give one another name with @{kind}(name=...)"
        )
    known[definition.name] = definition


def _defined_again(before: Any, now: Any, defined_by: CodeType | None) -> bool:
    """Whether this is one definition executed again (a reload, a file run as a script and imported), not a second."""
    if _source(before) != _source(now):
        return False
    old, new = getattr(before, "__code__", None), getattr(now, "__code__", None)
    if defined_by is None or old is new:
        return True
    # Executing a file again compiles or loads it again. Both in one compiled file are two definitions.
    return not any(constant is old for constant in defined_by.co_consts)


def _source(fn: Any) -> tuple[str, str]:
    inner = inspect.unwrap(getattr(fn, "func", fn))
    code = getattr(inner, "__code__", None)
    filename = code.co_filename if code is not None else getattr(inner, "__module__", "")
    return filename, getattr(inner, "__qualname__", repr(inner))


# ------------------------------------------------------------------ snapshots


def clear() -> None:
    """Forget everything, for a reload or a test."""
    _workflows.clear()
    _functions.clear()


def snapshot() -> Snapshot:
    return Snapshot(dict(_workflows), dict(_functions))


def restore(before: Snapshot) -> None:
    """Make the registry what it was when `before` was taken."""
    clear()
    _workflows.update(before.workflows)
    _functions.update(before.functions)


# ------------------------------------------------------------------ loading modules


def load(target: str) -> ModuleType:
    """Import "pkg.mod", or the file at a path (its folder joins `sys.path`), and check what it defines.

    Raises LoadError: no such module or file, or an error while it is imported; DefinitionError: a definition in it that
    cannot be used."""
    module = _load_file(target) if target.endswith(".py") or "/" in target or "\\" in target else _load_name(target)
    for definition in _workflows.values():
        definition.prepare()
    return module


def _load_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise LoadError(f"{name!r} is neither a module's name (pkg.mod) nor a path to a .py file")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it; a console script has not
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            file = Path(*name.split(".")).with_suffix(".py")
            hint = f"; there is a file {name}: write its path ./{name}" if Path(name).is_file() else ""
            raise LoadError(
                f"there is no module {missing!r}; run where it can be imported, or give the path to its file "
                f"(such as ./{file.as_posix()}){hint}"
            ) from error
        raise LoadError(f"module {name!r} imports {missing!r}, which is not installed") from error
    except Agnt5Error:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"module {name!r} failed while it was imported: {type(error).__name__}: {error}") from error


def _load_file(target: str) -> ModuleType:
    path = Path(target).resolve()
    if not path.is_file():
        raise LoadError(f"there is no file {target}" + ("; it is a folder" if path.is_dir() else ""))
    if path.suffix != ".py":
        raise LoadError(f"{target} is not a Python file (.py)")
    name = path.stem
    if not name.isidentifier():
        raise LoadError(f"{target}: rename the file so that {name!r} can be imported (letters, digits, '_')")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    known = sys.modules.get(name)
    if known is not None:
        file = getattr(known, "__file__", None)
        if file is not None and Path(file).resolve() == path:
            return known
        raise LoadError(
            f"{target}: a module called {name!r} is loaded already, from {file or 'the interpreter'}; rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, Agnt5Error) or not isinstance(error, (Exception, SystemExit)):
            raise
        raise LoadError(f"{target} failed while it was imported: {type(error).__name__}: {error}") from error
    return module


# ------------------------------------------------------------------ which code this is


def source_files() -> list[Path]:
    """The files that define what is registered."""
    found: set[Path] = set()
    for fn in [*(flow.fn for flow in _workflows.values()), *(step.fn for step in _functions.values())]:
        filename = _source(fn)[0]
        if filename and not filename.startswith("<"):
            found.add(Path(filename))
    return sorted(found)


def code_version() -> str:
    """16 hex digits that change when a module that defines workflows or functions does, and not with its place."""
    digest = hashlib.sha256()
    contents = []
    for file in source_files():
        try:
            contents.append((file.name, file.read_bytes()))
        except OSError:
            contents.append((file.name, b""))
    for name, text in sorted(contents):
        digest.update(name.encode() + b"\0" + hashlib.sha256(text).digest())
    for name in sorted(_workflows):
        digest.update(b"workflow\0" + name.encode() + b"\0")
    return digest.hexdigest()[:16]
