"""Where the processors of a data directory listen, noted there so that commands on the same machine find them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

_FOLDER = "http"


def note(data_dir: Path, url: str) -> Path:
    """Note that a processor listens at `url`; returns the note, to be removed when it stops."""
    folder = data_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(urlsplit(url).port)
    temporary = path.with_suffix(".new")
    temporary.write_text(url)
    temporary.replace(path)
    return path


def forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def noted(data_dir: Path) -> list[str]:
    """The noted addresses, newest first. One whose processor was killed stays until its port is used again."""
    try:
        notes = [path for path in (data_dir / _FOLDER).iterdir() if path.name.isdecimal()]
        return [path.read_text().strip() for path in sorted(notes, key=lambda path: -path.stat().st_mtime)]
    except OSError:
        return []
