"""Whether a webhook is genuine: each provider's published scheme, over the exact bytes that came.

Every comparison is constant-time and tries every secret, so that one can be replaced while both are in use. Where the
scheme signs a time, one more than five minutes off is refused. Whatever is wrong raises `ForgedError`, which says no
more than a forger may know.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence

from standardwebhooks import Webhook

WINDOW_SECONDS = 300
_MOST_CANDIDATES = 16  # signatures in one header; providers send one per secret in rotation


class ForgedError(Exception):
    """The signature is missing, wrong, or too old."""


class UnusableSecretError(Exception):
    """The configured secret is not of the scheme's form."""


Verify = Callable[[bytes, Mapping[str, str], Sequence[str]], None]


def verifier(source: str, headers: Mapping[str, str]) -> Verify:
    """The scheme of a source. Any source but the three named ones signs as Standard Webhooks say, or, where it sends
    `X-Webhook-Signature` instead, in the generic form (see `generic`)."""
    if named := _NAMED.get(source):
        return named
    return generic if "x-webhook-signature" in headers and "webhook-signature" not in headers else standard


def stripe(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
    """`Stripe-Signature: t=<unix>,v1=<hex>[,v1=<hex>]`: HMAC-SHA256 of `<t>.<body>`."""
    _timed(body, headers.get("stripe-signature"), secrets)


def generic(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
    """`X-Webhook-Signature: t=<unix>,v1=<hex>`: HMAC-SHA256 of `<t>.<body>`, for whoever has no scheme of their own."""
    _timed(body, headers.get("x-webhook-signature"), secrets)


def github(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
    """`X-Hub-Signature-256: sha256=<hex>`: HMAC-SHA256 of the body. It signs no time: a replay is the same delivery."""
    signature = headers.get("x-hub-signature-256", "")
    if not signature.startswith("sha256="):
        raise ForgedError("X-Hub-Signature-256 is missing or not of the form sha256=...")
    _compare(body, [signature.removeprefix("sha256=")], secrets)


def slack(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
    """`X-Slack-Signature: v0=<hex>`: HMAC-SHA256 of `v0:<X-Slack-Request-Timestamp>:<body>`."""
    signature = headers.get("x-slack-signature", "")
    if not signature.startswith("v0="):
        raise ForgedError("X-Slack-Signature is missing or not of the form v0=...")
    timestamp = _fresh(headers.get("x-slack-request-timestamp", ""))
    _compare(b"v0:%d:%b" % (timestamp, body), [signature.removeprefix("v0=")], secrets)


def standard(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
    """Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`."""
    verifiers = []
    for secret in secrets:
        try:
            verifiers.append(Webhook(secret))
        except Exception:
            raise UnusableSecretError("a Standard Webhooks secret is base64, usually after 'whsec_'") from None
    genuine = False
    for webhook in verifiers:
        try:
            webhook.verify(body, dict(headers), json_parse=False)
            genuine = True
        except Exception:  # the library raises many kinds for headers it cannot read
            continue
    if not genuine:
        raise ForgedError("webhook-id, webhook-timestamp and webhook-signature do not fit the body, or are too old")


def _timed(body: bytes, header: str | None, secrets: Sequence[str]) -> None:
    if not header:
        raise ForgedError("the signature header is missing")
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value for name, _, value in parts if name == "v1"]
    if len(times) != 1 or not signatures:
        raise ForgedError("the signature header is not of the form t=...,v1=...")
    _fresh(times[0])
    _compare(times[0].encode() + b"." + body, signatures, secrets)


def _fresh(timestamp: str) -> int:
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise ForgedError("the signature's time is missing or not a number of seconds")
    if abs(time.time() - int(timestamp)) > WINDOW_SECONDS:
        raise ForgedError(f"the signature's time is more than {WINDOW_SECONDS} s off")
    return int(timestamp)


def _compare(signed: bytes, signatures: Sequence[str], secrets: Sequence[str]) -> None:
    candidates = []
    for signature in signatures[:_MOST_CANDIDATES]:
        try:
            candidates.append(binascii.unhexlify(signature))
        except ValueError:
            continue
    genuine = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
        for candidate in candidates:
            genuine |= hmac.compare_digest(expected, candidate)
    if not genuine:
        raise ForgedError("the signature does not fit the body")


_NAMED: dict[str, Verify] = {"stripe": stripe, "github": github, "slack": slack}
NAMED_SOURCES = frozenset(_NAMED)
