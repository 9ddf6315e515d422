"""Where settings come from: variables of the environment and of `.env`, and the file `agnt5.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

PREFIX = "AGNT5_"
TOML_FILE = "agnt5.toml"
ENV_FILE = ".env"

COLLECTED = {
    "webhook_secrets": "AGNT5_WEBHOOK_<SOURCE>_SECRET",
    "queue_limits": "AGNT5_QUEUE_<NAME>_CONCURRENCY or _RATE",
    "function_limits": "AGNT5_FUNCTION_<NAME>_CONCURRENCY or _RATE",
}
"""Settings that have no variable of their own, and the variables they are collected from."""

_WEBHOOK = re.compile(r"AGNT5_WEBHOOK_([A-Z0-9_]+?)_SECRET")
_LIMIT = re.compile(r"AGNT5_(QUEUE|FUNCTION)_([A-Z0-9_]+?)_(CONCURRENCY|RATE)")


class SettingsError(ValueError):
    """Settings that cannot be used. The message has one line per fault: which setting, where, and the remedy."""


def from_variables(variables: Mapping[str, str | None], fields: Collection[str]) -> dict[str, Any]:
    """The settings among the variables. An empty one counts as not set, so `AGNT5_X=${X:-}` in a compose file is
    harmless."""
    found: dict[str, Any] = {}
    for variable, value in variables.items():
        if not variable.startswith(PREFIX) or not value:
            continue
        if (name := _field(variable, fields)) is not None:
            found[name] = value
        elif match := _WEBHOOK.fullmatch(variable):
            found.setdefault("webhook_secrets", {})[match[1].lower()] = value
        elif match := _LIMIT.fullmatch(variable):
            limits = found.setdefault(f"{match[1].lower()}_limits", {})
            limits.setdefault(match[2].lower(), {})[match[3].lower()] = value
    return found


def is_setting(variable: str, fields: Collection[str]) -> bool:
    """Whether the variable sets something."""
    return bool(_field(variable, fields) or _WEBHOOK.fullmatch(variable) or _LIMIT.fullmatch(variable))


def _field(variable: str, fields: Collection[str]) -> str | None:
    name = variable.removeprefix(PREFIX).lower()
    return name if name in fields and name not in COLLECTED else None


def dotenv() -> dict[str, str | None]:
    """The variables of `.env` in the working directory. Raises SettingsError."""
    try:
        return dotenv_values(ENV_FILE) if Path(ENV_FILE).is_file() else {}
    except UnicodeDecodeError as error:
        raise SettingsError(f"{ENV_FILE} is not UTF-8: {error}") from None


def toml() -> dict[str, Any]:
    """What `agnt5.toml` in the working directory says. Raises SettingsError."""
    path = Path(TOML_FILE)
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{TOML_FILE} is not valid TOML: {error}") from None
