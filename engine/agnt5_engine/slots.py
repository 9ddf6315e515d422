"""Which of several processors on one machine this one is: the first free slot of the data directory.

A slot gives a stable name to the group (static membership) and a folder to the tables, so a processor that is
restarted has both back. It is held by a file lock, which the operating system lets go of however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

_MOST = 256


class Slot:
    """Holds slot `number` until `release`."""

    def __init__(self, data_dir: Path, fixed: int | None = None) -> None:
        """Take the first free slot, or the one asked for. Raises OSError when it is taken or none is free."""
        folder = data_dir / "slots"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_MOST) if fixed is None else (fixed,):
            file = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
            self.number = number
            self._file = file
            self.folder = folder / str(number)
            self.folder.mkdir(exist_ok=True)
            return
        taken = f"slot {fixed}" if fixed is not None else f"all {_MOST} slots"
        raise OSError(f"{taken} of {data_dir} in use: stop the other processor, or set AGNT5_DATA_DIR")

    @property
    def instance_id(self) -> str:
        return f"{socket.gethostname()}-{self.number}"

    def release(self) -> None:
        os.close(self._file)
