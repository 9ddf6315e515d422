"""The options that measuring and comparing have in common, and where they work."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import FOLDER
from benchmarks.sizes import NAMED, Sizes


def add_options(parser: argparse.ArgumentParser, works: Sequence[str]) -> None:

    def chosen(text: str) -> list[str]:
        names = [name.strip().upper() for name in text.split(",") if name.strip()]
        if wrong := sorted(set(names) - set(works)):
            raise argparse.ArgumentTypeError(f"no such work: {', '.join(wrong)}; there are {', '.join(works)}")
        return names

    parser.add_argument("--only", type=chosen, default=list(works), metavar="W1,W3", help="these works")
    parser.add_argument("--repeats", type=int, metavar="N", help="instead of the size's own number")
    parser.add_argument("--size", choices=sorted(NAMED), default="default", help="how much is done")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument("--full", dest="size", action="store_const", const="full", help="the same as --size full")
    parser.add_argument("--results", type=Path, metavar="FILE", help="add to this file; default: a new one in results/")


def sizes_of(options: argparse.Namespace) -> Sizes:
    sizes = NAMED[options.size]
    return dataclasses.replace(sizes, repeats=options.repeats) if options.repeats else sizes


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk the project is on: what is measured may be its syncs, and /tmp is often memory."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="scratch-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
