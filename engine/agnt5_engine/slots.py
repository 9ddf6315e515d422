"""Which of several processors on one machine this one is: the first free slot of the data directory.

A slot gives a stable name to the group (static membership) and a folder to the tables, so a processor that is
restarted has both back. It is held by a file lock, which the operating system lets go of however the process ends.

The name is host and slot. Where processors of this machine have data directories of their own, they have the same
slots: then the later one's name also has a digest of its directory, and keeps it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
from pathlib import Path

_MOST = 256


class Slot:
    """Holds slot `number` until `release`."""

    def __init__(self, data_dir: Path) -> None:
        """Take the first free slot. Raises OSError when none is free."""
        folder = data_dir / "slots"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_MOST):
            file = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if not _locked(file):
                continue
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
            self.number = number
            self._files = [file]
            self.folder = folder / str(number)
            self.folder.mkdir(mode=0o700, exist_ok=True)  # for tables: payloads of runs
            self.instance_id = self._named()
            return
        raise OSError(f"all {_MOST} slots of {data_dir} are in use: stop a processor, or set AGNT5_DATA_DIR")

    def _named(self) -> str:
        """The name that no other processor on this machine has."""
        host = socket.gethostname()
        digest = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        plain, longer = f"{host}-{self.number}", f"{host}-{digest}-{self.number}"
        note = self.folder / "instance"
        if note.exists() and note.read_text() == longer:
            return longer
        name = plain if self._claimed(plain) else longer
        note.write_text(name)
        return name

    def _claimed(self, name: str) -> bool:
        try:
            folder = Path(tempfile.gettempdir()) / f"agnt5-{os.getuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True  # nowhere to ask: as if alone
        if not _locked(file):
            return False
        self._files.append(file)
        return True

    def release(self) -> None:
        for file in self._files:
            os.close(file)


def _locked(file: int) -> bool:
    """Whether the lock is ours now; the file is closed when it is not."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    return True
