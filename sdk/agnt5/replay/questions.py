"""What `ctx.wait_for_user` asks, and which answers fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import from_json, to_json

from agnt5.codec import check_text
from agnt5.replay.protocol import UserAsk

INPUT_TYPES = ("text", "approval", "select", "multiselect")
_APPROVAL = b'[{"id":"approve","label":"Approve"},{"id":"reject","label":"Reject"}]'


class InvalidAnswer(ValueError):
    """An answer that is none of the options. `allowed` lists them: `{"id", "label"}` each."""

    def __init__(self, message: str, allowed: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.allowed = allowed


def question(
    path: str,
    text: str,
    input_type: str,
    options: Sequence[Mapping[str, Any] | str] | None,
    allow_custom: bool,
    skippable: bool,
    due: int | None,
) -> UserAsk:
    """The ask. Raises TypeError or ValueError that names what is wrong with the question."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the question must be text that is not empty, not {text!r}")
    check_text(text, "the question")
    if input_type not in INPUT_TYPES:
        raise ValueError(f"input_type {input_type!r} is unknown; write one of {', '.join(map(repr, INPUT_TYPES))}")
    if options is None or not len(options):
        encoded = _APPROVAL if input_type == "approval" else b"[]"
        if input_type in ("select", "multiselect") and not allow_custom:
            raise ValueError(f"input_type {input_type!r} needs options to choose from, or allow_custom=True")
    elif input_type == "text":
        raise ValueError("input_type 'text' takes no options; write input_type='select' to offer some")
    else:
        encoded = to_json(_options(options))
    return UserAsk(path, text, input_type, encoded, bool(allow_custom), bool(skippable), due)


def _options(options: Sequence[Mapping[str, Any] | str]) -> list[dict[str, Any]]:
    if isinstance(options, (str, Mapping)):
        raise TypeError('options must be a list such as [{"id": "yes", "label": "Yes"}]')
    found: list[dict[str, Any]] = []
    for option in options:
        entry = {"id": option, "label": option} if isinstance(option, str) else dict(option)
        if not isinstance(entry.get("id"), str) or not entry["id"]:
            raise ValueError(f'an option needs an "id" that is text: {{"id": "yes", "label": "Yes"}}; not {option!r}')
        if not isinstance(entry.setdefault("label", entry["id"]), str):
            raise ValueError(f'the "label" of an option must be text: {{"id": "yes", "label": "Yes"}}; not {option!r}')
        if any(entry["id"] == other["id"] for other in found):
            raise ValueError(f"two options have the id {entry['id']!r}")
        found.append(entry)
    return found


@lru_cache(maxsize=1024)
def _parsed(options: bytes) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = from_json(options)
    return parsed


def check_answer(ask: UserAsk, answer: Any) -> bytes:
    """The answer as JSON, as the workflow will get it. Raises InvalidAnswer."""
    options = _parsed(ask.options)
    known = [option["id"] for option in options]
    if answer is None:
        if ask.skippable:
            return b"null"
        raise InvalidAnswer("this question cannot be skipped", options)
    if ask.input_type == "multiselect":
        if not isinstance(answer, list) or not all(isinstance(choice, str) for choice in answer):
            raise InvalidAnswer("the answer must be a list of options", options)
        chosen = answer
    elif isinstance(answer, str):
        chosen = [answer]
    else:
        raise InvalidAnswer("the answer must be text", options)
    if ask.input_type != "text" and not ask.allow_custom:
        wrong = [choice for choice in chosen if choice not in known]
        if wrong:
            raise InvalidAnswer(
                f"{', '.join(map(repr, wrong))} is not an option; choose from {', '.join(map(repr, known))}", options
            )
    return to_json(answer)
