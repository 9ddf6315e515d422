"""`python -m benchmarks`: measure, compare with a peer, or report. See docs/performance.md."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import kafka, report
from benchmarks.results import FOLDER, Results, fresh, machine
from benchmarks.sizes import NAMED, Sizes
from benchmarks.works import WORKS, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 something failed, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["report"]:
        return report.main(given[1:])
    if given[:1] == ["peers"]:
        from benchmarks.peers import compare

        return compare.main(given[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the engine. Further commands: report [FILE], peers. Each has its own --help.",
        epilog="Works: " + ", ".join(f"{work.id} {work.title}" for work in WORKS.values()),
    )
    add_options(parser, sorted(WORKS))
    parser.add_argument("--transport", choices=("kafka", "embedded", "both"), default="both")
    parser.add_argument("--flush-each", action="store_true", help="Kafka syncs every batch to the disk before its ack")
    parser.add_argument("--fresh-broker", action="store_true", help="a new broker for each repeat, not for each work")
    parser.add_argument("--processes", type=_numbers, metavar="1,2,4", help="what W8 tries")
    parser.add_argument("--partitions", type=_numbers, metavar="4,8,32", help="what W8 tries")
    options = parser.parse_args(given)
    sizes = sizes_of(options)
    if options.processes:
        sizes = dataclasses.replace(sizes, processes=options.processes)
    if options.partitions:
        sizes = dataclasses.replace(sizes, partitions=options.partitions)
    sides = []
    if options.transport in ("kafka", "both"):
        if (reason := kafka.missing()) and options.transport == "kafka":
            parser.error(reason)
        if reason:
            print(f"Kafka is left out: {reason}", file=sys.stderr)
        else:
            sides.append("kafka, flush=1" if options.flush_each else "kafka")
    if options.transport in ("embedded", "both"):
        sides.append("embedded")
    results = Results(options.results or fresh("run"))
    durability = {side: EMBEDDED if side == "embedded" else kafka.durability("flush=1" in side) for side in sides}
    results.note(**machine(), sizes=dataclasses.asdict(sizes), durability=durability)
    works = [WORKS[name] for name in options.only]
    good = True
    with scratch() as folder:
        for side in sides:
            good &= measure(works, side, sizes, results, folder, fresh_broker=options.fresh_broker)
    print(report.text(results.path), file=sys.stderr)
    return 0 if good else 1


EMBEDDED = "every append synced to the disk (RocksDB, group commit) before it is acknowledged"


def add_options(parser: argparse.ArgumentParser, works: Sequence[str]) -> None:
    """What measuring and comparing have in common."""

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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
