"""API keys as the settings hold them: digests with scopes, never the keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

Scope: TypeAlias = Literal["read", "start", "answer", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

# Whoever may act may also look at what came of it.
_GRANTS: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read"}),
    "start": frozenset({"read", "start"}),
    "answer": frozenset({"read", "answer"}),
    "admin": ALL_SCOPES,
}
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """SHA-256 of one key, and what its bearer may do."""

    digest: bytes
    scopes: frozenset[Scope]

    def __repr__(self) -> str:
        return f"ApiKey({'+'.join(sorted(self.scopes))})"


def parse_api_key(text: str) -> ApiKey:
    """One key as written in AGNT5_API_KEYS: `[SCOPE[+SCOPE...]:]KEY` or `[SCOPE[+SCOPE...]:]sha256:HEX`.

    Scopes are read, start, answer and admin; without any, the key may do everything. A key holds no colon and no
    comma. Raises ValueError, which never repeats the key.
    """
    parts = text.strip().split(":")
    scopes = ALL_SCOPES
    if len(parts) > 1 and parts[0] != "sha256":
        names = parts.pop(0).split("+")
        if not set(names) <= ALL_SCOPES:
            raise ValueError(
                "the part of a key before ':' names its scopes: read, start, answer or admin, joined by '+' "
                "(a key itself holds no ':')"
            )
        scopes = frozenset[Scope]().union(*(_GRANTS[cast(Scope, name)] for name in names))
    match parts:
        case ["sha256", digest] if _DIGEST.fullmatch(digest.lower()):
            return ApiKey(bytes.fromhex(digest), scopes)
        case ["sha256", _]:
            raise ValueError("after 'sha256:' come the 64 hex digits of the key's SHA-256")
        case [key] if key and key.isprintable() and " " not in key:
            return ApiKey(hashlib.sha256(key.encode()).digest(), scopes)
        case _:
            raise ValueError("a key is one word without ':' or ',': KEY, sha256:HEX, or SCOPE:KEY as in 'read:KEY'")


def granted(keys: Iterable[ApiKey], presented: str) -> frozenset[Scope] | None:
    """What the bearer of `presented` may do, or None when it is no key of these.

    Takes the same time whichever key matches, or none.
    """
    digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
    found: frozenset[Scope] | None = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key.scopes if found is None else found | key.scopes
    return found
