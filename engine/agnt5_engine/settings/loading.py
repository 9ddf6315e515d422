"""The settings in force, and what is wrong with those that are not."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import ValidationError

from agnt5_engine.settings.model import Settings
from agnt5_engine.settings.sources import (
    COLLECTED,
    ENV_FILE,
    PREFIX,
    TOML_FILE,
    SettingsError,
    dotenv,
    from_variables,
    is_setting,
)

log = structlog.stdlib.get_logger(__name__)


def load_settings(**overrides: Any) -> Settings:
    """The settings in force, with `overrides` (a command's own options; None means not given) before all others.

    Logs a warning for every AGNT5_* variable that is no setting. Raises SettingsError.
    """
    if not structlog.is_configured():
        # Unconfigured, structlog prints to stdout, which is for data.
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(line, given) for line in error.errors())) from None
    for place, variables in (("environment", os.environ), (ENV_FILE, dotenv())):
        for name in variables:
            if name.startswith(PREFIX) and not is_setting(name, Settings.model_fields):
                log.warning("setting.unknown", variable=name, where=place, did_you_mean=near_variable(name))
    return settings


def near_variable(name: str) -> str | None:
    """The setting's variable that `name` was probably meant to be."""
    known = [PREFIX + field.upper() for field in Settings.model_fields if field not in COLLECTED]
    return next(iter(difflib.get_close_matches(name, [*known, "AGNT5_WEBHOOK_STRIPE_SECRET"], n=1, cutoff=0.7)), None)


def _fault(error: Any, given: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    place = _place(name, given)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(Settings.model_fields), n=1, cutoff=0.6)
        return f"{place}: there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{place}: {message}"


def _place(name: str, given: Mapping[str, Any]) -> str:
    """Where the value in force came from, in the order of precedence."""
    variable = PREFIX + name.upper()
    if name in given:
        return variable
    for where, variables in (("", os.environ), (f" in {ENV_FILE}", dotenv())):
        if name in from_variables(variables, Settings.model_fields):
            return f"{COLLECTED.get(name, variable)}{where}"
    return f"{name!r} in {TOML_FILE}"
