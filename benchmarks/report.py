"""`python -m benchmarks report [FILE] [--write]`: results as a table, as plots, and as the parts of the
documentation and the README that hold numbers."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import svg
from benchmarks.figures import Summary
from benchmarks.results import FOLDER, Case, Measured, latest, read
from benchmarks.targets import Target, target

PAGE = FOLDER.parent.parent / "docs" / "performance.md"
PLOTS = PAGE.parent / "performance"
README = PAGE.parent.parent / "README.md"
_BLOCK = "<!-- {name}: written by `python -m benchmarks {by} --write` -->\n{body}\n<!-- end of {name} -->"
RATIO = "times_as_good"
_QUIET = 0.25
"""Cores kept busy by others beyond which a measurement is called disturbed."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="default: the newest in benchmarks/results/")
    parser.add_argument("--write", action="store_true", help="put table and plots into docs/ and the README")
    options = parser.parse_args(arguments)
    path = options.file or latest()
    if path is None:
        print("there are no results yet: make bench", file=sys.stderr)
        return 1
    try:
        measured = read(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text(path))
    drawn = plots(measured)
    folder = PLOTS if options.write else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawn.items():
        (folder / f"{name}.svg").write_text(drawing)
        print(f"drew {folder / name}.svg", file=sys.stderr)
    if options.write:
        peers = measured.circumstances.get("kind") == "peers"
        name = "peers" if peers else "measured"
        try:
            page = replaced(PAGE.read_text(), name, markdown(measured, sorted(drawn)))
        except (OSError, ValueError) as error:
            print(f"{PAGE}: {error}", file=sys.stderr)
            return 1
        PAGE.write_text(page)
        print(f"wrote {PAGE}", file=sys.stderr)
        block, body = ("beside", ratios(measured)) if peers else ("speed", headlines(measured))
        README.write_text(replaced(README.read_text(), block, body))
        print(f"wrote {README}", file=sys.stderr)
    return 0


# ---------------------------------------------------------------------- tables


def text(path: Path) -> str:
    """A table for a terminal."""
    measured = read(path)
    out = [_circumstances(measured), ""]
    for work, rows in _by_work(measured):
        out += [f"== {work}", ""]
        for case, figures in rows:
            out.append(f"{case.case}   [{case.side}]")
            for name, found in figures.items():
                out.append(f"    {name:<40} {_range(found):<34} {_verdict(case, name, found)}".rstrip())
            out.append("")
    for line in measured.failures:
        first = line["failed"].partition("\n")[0]
        out.append(f"FAILED {line['work']} on {line['side']}, repeat {line['repeat']}: {first}")
    return "\n".join(out)


def markdown(measured: Measured, drawn: Sequence[str]) -> str:
    """A table for the documentation."""
    out = [_circumstances(measured), ""]
    for work, rows in _by_work(measured):
        out += [f"### {work}", "", "| Case | On | Figure | Median (least to most) | Wanted |", "|---|---|---|---|---|"]
        for case, figures in rows:
            for name, found in figures.items():
                verdict = _verdict(case, name, found)
                out.append(f"| {case.case} | {case.side} | `{name}` | {_range(found)} | {verdict} |")
        out.append("")
    out += [f"![{name}](performance/{name}.svg)\n" for name in drawn]
    for line in measured.failures:
        out.append(f"Failed: {line['work']} on {line['side']}, repeat {line['repeat']}.")
    return "\n".join(out).rstrip()


def headlines(measured: Measured) -> str:
    """What is aimed at and what was measured, for the README."""
    out = [
        _circumstances(measured).partition("\n")[0],
        "",
        "| Work | Figure | Median | Aimed at |",
        "|---|---|---|---|",
    ]
    for case, figures in measured.cases.items():
        for name, found in figures.items():
            wanted = target(case.work, case.side, case.case, name)
            if wanted is not None:
                out.append(f"| {case.case}, {case.side} | `{name}` | {_number(found.median)} | {_bound(wanted)} |")
    return "\n".join(out)


def ratios(measured: Measured) -> str:
    """How many times as good as the peer ours is at each work, for the README."""
    found = {case: figures[RATIO] for case, figures in measured.cases.items() if RATIO in figures}
    sides = list(dict.fromkeys(case.side for case in found))
    out = [
        _circumstances(measured).partition("\n")[0],
        "",
        f"| Times as good | {' | '.join(sides)} |",
        "|---|" + "---|" * len(sides),
    ]
    for name in dict.fromkeys(case.case for case in found):
        cells = [_number(one.median) for side in sides for case, one in found.items() if case[1:] == (side, name)]
        figure, _, work = name.partition(": ")
        out.append(f"| {work}, `{figure}` | {' | '.join(cells)} |")
    return "\n".join(out)


def replaced(page: str, name: str, body: str, by: str = "report") -> str:
    """The page with another body in a block, written `by` a command. Raises ValueError when it has no such block."""
    pattern = re.compile(rf"<!-- {name}: .*?<!-- end of {name} -->", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"there is no block {name!r} to write to")
    return pattern.sub(lambda _: _BLOCK.format(name=name, body=body, by=by), page)


def _by_work(measured: Measured) -> Iterator[tuple[str, list[tuple[Case, dict[str, Summary]]]]]:
    for work in sorted({case.work for case in measured.cases}):
        yield work, [(case, figures) for case, figures in measured.cases.items() if case.work == work]


def _range(found: Summary) -> str:
    if found.repeats == 1:
        return f"{_number(found.median)} (once)"
    return f"{_number(found.median)} ({_number(found.least)} to {_number(found.most)})"


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _verdict(case: Case, name: str, found: Summary) -> str:
    wanted = target(case.work, case.side.partition(",")[0], case.case, name)
    if wanted is None:
        return ""
    return f"{_bound(wanted)}: {'reached' if wanted.met(found.median) else 'missed'}"


def _bound(wanted: Target) -> str:
    return f"{'at most' if wanted.at_most else 'at least'} {_number(wanted.bound)}"


def _circumstances(measured: Measured) -> str:
    known = measured.circumstances
    cases = measured.cases.values()
    repeats = sorted({found.repeats for figures in cases for found in figures.values()})
    busy = max((figures["foreign_cores"].most for figures in cases if "foreign_cores" in figures), default=0.0)
    minutes = sum(value for name, value in known.items() if name.startswith("seconds ")) / 60
    out = [
        f"Measured {known.get('time', '?')} at {known.get('commit', '?')}: {known.get('cpu', '?')}, "
        f"{known.get('cores', '?')} cores shared by broker, processors and load; Python {known.get('python', '?')}; "
        f"{'/'.join(map(str, repeats)) or 'no'} repeats, {minutes:.0f} minutes.",
        *(f"Durability, {side}: {how}." for side, how in known.get("durability", {}).items()),
    ]
    if busy > _QUIET:
        out.append(f"The machine was disturbed: others used up to {busy:.1f} cores meanwhile.")
    return "\n".join(out)


# ---------------------------------------------------------------------- plots

_LENGTH = re.compile(r"one run of ([\d,]+) steps")
_FINISHED = re.compile(r"start with ([\d,]+) finished runs")


def plots(measured: Measured) -> dict[str, str]:
    """Drawings by name; those whose works were not measured are left out."""
    if measured.circumstances.get("kind") == "peers":
        drawn = {"peers": _bars(measured, "Times as good as the peer", "times", "", RATIO, _work)}
    else:
        drawn = {
            "w7-length": _curve(
                measured, "CPU of the processor for one step, by the run's length", "steps", "us", _LENGTH,
                ("processor_cpu_us_per_step",),
            ),
            "w7-start": _curve(
                measured, "Time to start, by runs that have finished before", "finished runs", "s", _FINISHED,
                ("start_same_disk_s", "start_empty_disk_s"),
            ),
            "w1-steps": _bars(measured, "Steps per second (W1)", "steps/s", "W1", "steps_per_s", _side),
            "w8-scaling": _bars(measured, "Steps per second (W8)", "steps/s", "W8", "steps_per_s", _scaling),
        }  # fmt: skip
    return {name: drawing for name, drawing in drawn.items() if drawing}


def _side(case: Case) -> str:
    return case.side


def _work(case: Case) -> str:
    return case.work


def _scaling(case: Case) -> str:
    return case.case.replace(" processes", "p").replace(" process", "p").replace(" partitions", "")


def _curve(
    measured: Measured, title: str, x: str, y: str, pattern: re.Pattern[str], figures: Sequence[str]
) -> str | None:
    series: dict[str, list[tuple[float, Summary]]] = {}
    for case, found in measured.cases.items():
        if match := pattern.fullmatch(case.case):
            for figure in figures:
                if figure in found:
                    name = (
                        f"{case.side}, {figure.removesuffix('_s').replace('_', ' ')}" if len(figures) > 1 else case.side
                    )
                    series.setdefault(name, []).append((float(match[1].replace(",", "")), found[figure]))
    return svg.lines(title, x, y, {name: sorted(points) for name, points in series.items()}) if series else None


def _bars(measured: Measured, title: str, y: str, work: str, figure: str, label: Callable[[Case], str]) -> str | None:
    groups: dict[str, dict[str, Summary]] = {}
    for case, found in measured.cases.items():
        if case.work.startswith(work) and figure in found:
            groups.setdefault(label(case), {})[case.side] = found[figure]
    return svg.bars(title, y, groups) if groups else None
