"""What a genuine webhook says: which delivery it is, of which type, with which fields."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from agnt5_engine.gateway.body import parse_json
from agnt5_engine.gateway.problems import ProblemError, invalid

_FORM = "application/x-www-form-urlencoded"


class Delivery(NamedTuple):
    """One webhook. `types` are the names a trigger may know it by (GitHub: `pull_request` and `pull_request.opened`),
    the most telling last; `fields` are what a workflow's parameters bind from."""

    id: str
    types: tuple[str, ...]
    body: dict[str, Any]
    fields: dict[str, Any]

    def wanted_as(self, event: str | None) -> bool:
        """Whether a trigger for `event` (None: for all) wants it."""
        return event is None or event in self.types


def read_delivery(source: str, body: bytes, headers: Mapping[str, str]) -> Delivery:
    """Read a webhook whose signature was found good. Raises ProblemError 415, 422."""
    value = _content(body, headers.get("content-type", ""))
    match source:
        case "stripe":
            nested = value.get("data")
            fields = nested.get("object") if isinstance(nested, dict) else None
            return Delivery(
                _text(value.get("id")) or _digest(body),
                _types(value.get("type")),
                value,
                fields if isinstance(fields, dict) else value,
            )
        case "github":
            event, action = headers.get("x-github-event"), value.get("action")
            types = _types(event, f"{event}.{action}" if event and isinstance(action, str) else None)
            return Delivery(headers.get("x-github-delivery") or _digest(body), types, value, value)
        case "slack":
            nested = value.get("event")
            inner = nested.get("type") if isinstance(nested, dict) else None
            stamp = headers.get("x-slack-request-timestamp", "").encode()
            identity = _text(value.get("event_id")) or _text(value.get("trigger_id")) or _digest(stamp + body)
            return Delivery(identity, _types(value.get("type") or value.get("command"), inner), value, value)
        case _:
            identity = headers.get("webhook-id") or headers.get("x-webhook-id") or _digest(body)
            types = _types(value.get("type") or headers.get("x-webhook-event"))
            return Delivery(identity, types, value, value)


def _content(body: bytes, content_type: str) -> dict[str, Any]:
    essence = content_type.partition(";")[0].strip().lower()
    if essence == _FORM:
        # GitHub and Slack can send forms; interactive ones hold their JSON in one field.
        try:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
        except ValueError:
            raise invalid([{"field": "body", "message": "is not a form"}]) from None
        value = parse_json(form["payload"].encode()) if "payload" in form else form
    elif essence in ("", "application/json", "text/plain") or essence.endswith("+json"):
        value = parse_json(body)
    else:
        raise ProblemError(415, "wrong-content-type", f"A webhook's body must be JSON or a form, not {essence[:80]!r}.")
    if not isinstance(value, dict):
        raise invalid([{"field": "body", "message": "must be an object"}])
    return value


def _types(*names: Any) -> tuple[str, ...]:
    return tuple(name for name in names if isinstance(name, str) and name)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
