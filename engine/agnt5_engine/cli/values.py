"""Values as people type them: `key=value`, JSON, `@file`, `-`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer


def text_of(given: str) -> str:
    """What was given: itself, the content of `@file`, or stdin for `-`. Raises typer.BadParameter."""
    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@"):
            return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given}: {error}") from None
    return given


def json_of(given: str, what: str) -> Any:
    """JSON from an argument, `@file` or stdin. Raises typer.BadParameter that shows how to write it."""
    text = text_of(given)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        quoted = json.dumps(text if len(text) < 60 else text[:57] + "...", ensure_ascii=False)
        raise typer.BadParameter(f"{what} is not JSON ({error}); text is written with quotes: '{quoted}'") from None


def object_of(given: str, what: str) -> dict[str, Any]:
    """As `json_of`, for an object."""
    value = json_of(given, what)
    if not isinstance(value, dict):
        raise typer.BadParameter(f'{what} must be a JSON object such as \'{{"name": "Ada"}}\'')
    return value


def pairs_of(pairs: Sequence[str], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """`key=value` arguments as an input object. A value is JSON where it reads as JSON, else text; where the workflow's
    input schema wants text, it is text. Raises typer.BadParameter."""
    properties = (schema or {}).get("properties", {})
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{pair!r} is not key=value")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice")
        found[key] = value if wants_text(properties.get(key)) else _json_or_text(value)
    return found


def wants_text(schema: Any) -> bool:
    """Whether a JSON Schema takes text and nothing else but null."""
    if not isinstance(schema, dict):
        return False
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        return bool(kinds) and all(wants_text(kind) for kind in kinds)
    return schema.get("type") == "string"


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
