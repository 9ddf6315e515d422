"""`python -m benchmarks`: measure, compare with a peer, or report. See docs/performance.md."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from benchmarks import kafka, report, shares
from benchmarks.durability import SIDES
from benchmarks.options import add_options, scratch, sizes_of
from benchmarks.peers import compare
from benchmarks.results import Results, fresh, machine
from benchmarks.works import WORKS, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 something failed, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["report"]:
        return report.main(given[1:])
    if given[:1] == ["shares"]:
        return shares.main(given[1:])
    if given[:1] == ["peers"]:
        return compare.main(given[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the engine. Further commands: report [FILE], peers, shares. Each has its own --help.",
        epilog="Works: " + ", ".join(f"{work.id} {work.title}" for work in WORKS.values()),
    )
    add_options(parser, sorted(WORKS))
    parser.add_argument("--transport", choices=("kafka", "embedded", "both"), default="both")
    parser.add_argument("--flush-each", action="store_true", help="Kafka syncs every batch to the disk before its ack")
    parser.add_argument("--fresh-broker", action="store_true", help="a new broker for each repeat, not one for all")
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
    durability = {side: SIDES[side] for side in sides}
    results.note(**machine(), sizes=dataclasses.asdict(sizes), durability=durability)
    works = [WORKS[name] for name in options.only]
    good = True
    with scratch() as folder:
        for side in sides:
            good &= measure(works, side, sizes, results, folder, fresh_broker=options.fresh_broker)
    print(report.text(results.path), file=sys.stderr)
    return 0 if good else 1


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
