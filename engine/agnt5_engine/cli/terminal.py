"""What every command says and how: data to stdout, the rest to stderr, and the exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from agnt5_engine.cli.exits import FAILED, NOT_FOUND, UNREACHABLE, USAGE
from agnt5_engine.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, in the shapes of the HTTP API.")]


def say(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    typer.echo(printable(message), err=True)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong and exit."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {printable(message)}", err=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    typer.echo(f"{typer.style('warning:', fg='yellow', bold=True)} {printable(message)}", err=True)


def print_shape(shape: BaseModel) -> None:
    """A shape as JSON, readable on a terminal, one line elsewhere."""
    typer.echo(shape.model_dump_json(indent=2 if sys.stdout.isatty() else None))


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows for people. The first column is never cut: it is the ID to go on with."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=True, overflow="ellipsis", min_width=None if number else _widest(rows))
    for row in rows:
        table.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    stdout().print(table)


def print_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """One thing for people: a name and a value a line; empty ones are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value is not None and value not in ("", []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(name, Text(printable(text)))
    stdout().print(table)


def stdout() -> Console:
    from rich.console import Console

    # Into a file or a pipe lines are as long as they need to be.
    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 240)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def when(time: Any) -> str:
    """A time for people: local, to the second."""
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turns what a command raises into a message and its exit code."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with told():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def told() -> Iterator[None]:
    """Errors that are somebody's to act on, as a message and an exit code; any other keeps its traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has enough.
        sys.stderr.close()
        raise typer.Exit(0) from None
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        fail(_message_of(error), code)


def _code_of(error: Exception) -> int | None:
    from pydantic_core import PydanticSerializationError

    from agnt5.errors import Agnt5Error, DefinitionError
    from agnt5.registry import LoadError
    from agnt5_engine.settings import SettingsError
    from agnt5_engine.transport.base import RetriableError, TransportError

    if isinstance(error, (SettingsError, DefinitionError, LoadError)):
        return USAGE
    if isinstance(error, (UnicodeEncodeError, PydanticSerializationError)):
        return USAGE  # an argument's bytes were no UTF-8, or it quotes half of a surrogate pair: JSON holds neither
    if isinstance(error, RetriableError):
        return UNREACHABLE
    if isinstance(error, TransportError):
        return FAILED
    if isinstance(error, Agnt5Error):
        from agnt5.client.errors import InvalidError, NotFoundError, UnavailableError

        if isinstance(error, NotFoundError):
            return NOT_FOUND
        if isinstance(error, UnavailableError):
            return UNREACHABLE
        return USAGE if isinstance(error, InvalidError) else FAILED
    return FAILED if isinstance(error, OSError) else None


def _message_of(error: Exception) -> str:
    extra = getattr(getattr(error, "problem", None), "model_extra", None) or {}
    lines = [str(error)]
    for name in ("options", "answer", "entries"):
        if name in extra:
            lines.append(f"  {name}: {json.dumps(extra[name], ensure_ascii=False)}")
    return "\n".join(lines)


def _widest(rows: Sequence[Sequence[Any]]) -> int | None:
    return max((len(str(row[0])) for row in rows), default=None)
