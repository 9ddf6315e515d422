"""Ciphertext at rest: journal, changelog, outcomes and tables can be sealed with keys of your own.

Whole values are sealed, names and payloads alike; record keys (run IDs, topic names) stay readable, since routing needs
them. A sealed value is `C3 02`, the key's ID, a 96-bit random nonce and the AES-GCM ciphertext with its tag (NIST SP
800-38D). Values that were written before sealing was switched on are still read.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"\xc3\x02"
_NONCE = 12


class SealError(ValueError):
    """A sealed value that cannot be opened here. The message says why."""


class PayloadCodec(Protocol):
    """What `use_codec` takes; yours may keep its keys elsewhere. Both calls are on the hot path: they never block."""

    def seal(self, value: bytes) -> bytes:
        """The value as it is kept; it begins with MAGIC."""
        ...

    def open(self, sealed: bytes) -> bytes:
        """The value again. Raises SealError."""
        ...


class AesGcm:
    """AES-GCM with several keys by ID: the first seals, all of them open, so keys can be rotated."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """`keys`: ID (1 to 255 bytes of UTF-8) to 16, 24 or 32 bytes. Raises ValueError."""
        if not keys:
            raise ValueError("no key given")
        self._keys: dict[bytes, AESGCM] = {}
        for name, key in keys.items():
            label = name.encode()
            if not 0 < len(label) < 256:
                raise ValueError("a key's ID has 1 to 255 bytes")
            if len(key) not in (16, 24, 32):
                raise ValueError(f"key {name!r} has {len(key)} bytes; AES takes 16, 24 or 32")
            self._keys[label] = AESGCM(key)
        self._label, self._key = next(iter(self._keys.items()))
        self._head = MAGIC + bytes([len(self._label)]) + self._label

    def seal(self, value: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return self._head + nonce + self._key.encrypt(nonce, value, self._label)

    def open(self, sealed: bytes) -> bytes:
        end = 3 + sealed[2] if len(sealed) > 2 else 3
        label = sealed[3:end]
        key = self._keys.get(label)
        if key is None:
            raise SealError(
                f"sealed with key {label.decode(errors='replace')!r}, which AGNT5_PAYLOAD_KEYS does not have"
            )
        try:
            return key.decrypt(sealed[end : end + _NONCE], sealed[end + _NONCE :], label)
        except (InvalidTag, ValueError) as e:
            raise SealError(f"damaged, or sealed with another key of the ID {label.decode(errors='replace')!r}") from e


def parse_keys(text: str) -> dict[str, bytes]:
    """AGNT5_PAYLOAD_KEYS: `ID:BASE64[,ID:BASE64...]`, the one that seals first. Raises ValueError without showing a
    key."""
    keys: dict[str, bytes] = {}
    for name, encoded in written_keys(text):
        try:
            keys[name] = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise ValueError(f"the key {name!r} is not base64") from None
    return keys


def written_keys(text: str) -> list[tuple[str, str]]:
    """The same keys with their IDs, as they are written. Raises ValueError without showing one."""
    parts = [part.strip().partition(":") for part in text.split(",") if part.strip()]
    if not all(name and colon for name, colon, _ in parts):
        raise ValueError("write ID:BASE64, several by comma")
    return [(name, encoded) for name, _, encoded in parts]
