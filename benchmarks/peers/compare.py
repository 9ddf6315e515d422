"""`python -m benchmarks peers`: our side and the peer in turn, on the same works, and their ratios."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from benchmarks import kafka, report
from benchmarks.figures import Finding
from benchmarks.options import add_options, scratch, sizes_of
from benchmarks.peers import install
from benchmarks.peers.ours import Ours
from benchmarks.peers.restate import Restate
from benchmarks.peers.side import Side
from benchmarks.peers.works import COMPARED, Compared
from benchmarks.results import Case, Results, fresh, machine
from benchmarks.sizes import Sizes
from benchmarks.warming import warm_broker

OURS = ("kafka", "kafka, flush=1", "embedded")
_PEER_RUNS = 2_000
"""Runs of W1: so many that the slower side takes seconds, not minutes."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 1 something failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Compare with Restate: its server from npm, its SDK from PyPI, brought into benchmarks/.peers.",
    )
    add_options(parser, sorted(COMPARED))
    parser.add_argument(
        "--ours", choices=OURS, action="append", help="how ours runs; can be repeated; default: on Kafka, both ways"
    )
    parser.add_argument("--peer-partitions", type=int, metavar="N", help="of Restate's log; default: its own default")
    options = parser.parse_args(arguments)
    kinds = options.ours or ["kafka", "kafka, flush=1"]
    if any(kind != "embedded" for kind in kinds) and (reason := kafka.missing()):
        parser.error(reason)
    try:
        install.install()
    except install.Unavailable as problem:
        print(f"peers: {problem}", file=sys.stderr)
        return 1
    sizes = sizes_of(options)
    sizes = dataclasses.replace(sizes, runs=min(sizes.runs, _PEER_RUNS))
    results = Results(options.results or fresh("peers"))
    results.note(kind="peers", peer=[install.SERVER, *install.PACKAGES], sizes=dataclasses.asdict(sizes), **machine())
    good = True
    with scratch() as folder, contextlib.ExitStack() as brokers:
        makers: list[Callable[[Path], Side]] = [
            *(_ours(kind, sizes, folder, brokers) for kind in kinds),
            lambda place: Restate(place, options.peer_partitions),
        ]
        for name in options.only:
            began = time.monotonic()
            for repeat in range(1, sizes.repeats + 1):
                good &= _repeat(name, COMPARED[name], makers, sizes, repeat, results, folder)
            results.note(**{f"seconds {name}": round(time.monotonic() - began, 1)})
    print(report.text(results.path), file=sys.stderr)
    return 0 if good else 1


def _ours(kind: str, sizes: Sizes, folder: Path, brokers: contextlib.ExitStack) -> Callable[[Path], Side]:
    """Ours keeps its broker, which is warm, from work to work. What the peer keeps is compiled beforehand."""
    broker = brokers.enter_context(warm_broker(folder, sizes, kind))
    return lambda place: Ours(kind, sizes, place, broker)


def _repeat(
    name: str, work: Compared, makers: Sequence[Callable[[Path], Side]], sizes: Sizes, repeat: int, results: Results,
    folder: Path,
) -> bool:  # fmt: skip
    """Every side once, the peer last; then the ratios."""
    found: dict[str, Finding] = {}
    for maker in makers:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
            side = maker(Path(place))
            results.note(durability={side.name: side.durability})
            try:
                side.start()
                gc.collect()
                found[side.name] = uvloop.run(_measured(work, side, sizes))
            except Exception as error:
                results.failed(name, side.name, repeat, error)
                continue
            finally:
                side.close()
        results.add(Case(name, side.name, found[side.name].case), repeat, found[side.name].figures)
    theirs = found.get(Restate.name)
    for name_, ours in found.items():
        if theirs is not None and ours is not theirs:
            mine, other = ours.figures[work.headline], theirs.figures[work.headline]
            ratio = mine / other if work.more_is_better else other / mine
            case = Case(name, f"{name_} beside {Restate.name}", f"{work.headline}: {ours.case}")
            results.add(case, repeat, {report.RATIO: ratio})
    return len(found) == len(makers)


async def _measured(work: Compared, side: Side, sizes: Sizes) -> Finding:
    return await work.measure(side, sizes)
