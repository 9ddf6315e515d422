"""The one hop a request may take to the owner of its partition, and the header that proves it was taken.

A processor that passes a request on signs `agnt5-hop` with the API keys that all processors of a group share (as
digests), so that nobody outside can use it to choose a run's ID. A request that carries it is never passed on again.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple
from urllib.parse import quote, unquote

from starlette.requests import Request

from agnt5_engine.gateway.problems import ProblemError
from agnt5_engine.records.routing import is_run_id
from agnt5_engine.settings import Settings

HEADER = "agnt5-hop"


class Hop(NamedTuple):
    """What the first processor decided: the run's ID where one is to be started, and (for a webhook, which may start
    several) the one workflow that this hop is about."""

    run_id: str | None = None
    workflow: str | None = None


class HopSigner:
    """Writes and reads the header."""

    def __init__(self, settings: Settings) -> None:
        digests = sorted(key.digest for key in settings.api_keys)
        self._secret = hashlib.sha256(b"agnt5 hop\0" + b"".join(digests)).digest()

    def write(self, hop: Hop, path: str) -> str:
        pinned = f"{hop.run_id or '-'} {quote(hop.workflow or '-')}"
        return f"{pinned} {self._signature(pinned, path)}"

    def read(self, request: Request) -> Hop | None:
        """The request's hop; None when it came straight from a client. Raises ProblemError 403 for a forged one."""
        header = request.headers.get(HEADER)
        if header is None:
            return None
        pinned, _, signature = header.rpartition(" ")
        run_id, _, workflow = pinned.partition(" ")
        expected = self._signature(pinned, request.scope["path"]).encode()
        genuine = hmac.compare_digest(signature.encode("latin-1", "replace"), expected)
        if not genuine or not (run_id == "-" or is_run_id(run_id)):
            detail = f"The header {HEADER} is for processors of one group, which all have the same AGNT5_API_KEYS."
            raise ProblemError(403, "forged-hop", detail)
        return Hop(None if run_id == "-" else run_id, None if workflow in ("-", "") else unquote(workflow))

    def _signature(self, pinned: str, path: str) -> str:
        return hmac.new(self._secret, f"{pinned}\0{path}".encode(), hashlib.sha256).hexdigest()
