"""What this log has promised, so that a start can tell whether all of it is there."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_U64 = struct.Struct("=Q")


class AckedMark:
    """What was acknowledged, in a mapped page that survives the process: the highest sequence number, written after
    each sync, and a size that RocksDB's list of files had. On a power cut it can only be older than what is on the
    disk. It tells a torn end that nobody was promised from records that were lost."""

    _LAYOUT = struct.Struct("=QQQ")  # sequence, number of the manifest, its size

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            missing = self._LAYOUT.size - os.fstat(file).st_size
            if missing > 0:
                os.pwrite(file, bytes(missing), self._LAYOUT.size - missing)  # a hole: SIGBUS on a full disk
            self._page = mmap.mmap(file, self._LAYOUT.size)
        finally:
            os.close(file)
        self._seen = (0, 0)

    def read(self) -> int:
        return int(_U64.unpack_from(self._page)[0])

    def write(self, sequence: int) -> None:
        _U64.pack_into(self._page, 0, sequence)

    def note_manifest(self) -> None:
        """Noted one call late, when it has long been synced."""
        _, number, size = self._LAYOUT.unpack_from(self._page)
        if self._seen > (number, size):
            _U64.pack_into(self._page, 8, self._seen[0])
            _U64.pack_into(self._page, 16, self._seen[1])
        self._seen = self._manifest()

    def shrunk_manifest(self) -> str | None:
        _, number, size = self._LAYOUT.unpack_from(self._page)
        now_number, now_size = self._manifest()
        if now_number == number and now_size < size:
            return f"MANIFEST-{number:06} has {now_size} bytes, it had {size}"
        return None

    def _manifest(self) -> tuple[int, int]:
        try:
            name = (self._directory / "CURRENT").read_text().strip()
            return int(name.removeprefix("MANIFEST-")), (self._directory / name).stat().st_size
        except (OSError, ValueError):
            return 0, 0  # RocksDB says what is wrong

    def close(self) -> None:
        self._page.close()
