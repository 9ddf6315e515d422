"""Which process has the directory: one at a time, and the others are told which."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from agnt5_engine.transport.base import TransportError


class StoreError(TransportError):
    """The directory cannot be used as it is. The message names it, and what to do."""


class Lock:
    """`OWNER` beside RocksDB's files: locked while this process has the log, and says who that is."""

    def __init__(self, path: Path) -> None:
        self._path = path / "OWNER"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"cannot write to {path}: {error.strerror}. Give AGNT5_BROKER a directory that this user can write to."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise self.held_error() from error
        self.note(None)

    def note(self, url: str | None) -> None:
        content = json.dumps({"pid": os.getpid(), "url": url}).encode()
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, content, 0)

    def held_error(self) -> StoreError:
        who = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(self._path.read_bytes())
            who = f"process {owner['pid']}" + (f" ({owner['url']})" if owner["url"] else "")
        return StoreError(
            f"the log in {self._path.parent} is in use by {who}. One process at a time can have an embedded log: "
            f"stop that one, or use another directory (AGNT5_BROKER=embedded://DIR)."
        )

    def release(self) -> None:
        os.close(self._file)
