"""Plots as SVG: lines over a logarithmic axis, and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.figures import Summary

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626")


def lines(title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, Summary]]]) -> str:
    """Medians joined by lines, with a bar from the least to the most. The x axis is logarithmic, y starts at 0."""
    every = [point for points in series.values() for point in points]
    low, high = math.log10(min(at for at, _ in every)), math.log10(max(at for at, _ in every))
    top = _ceiling(max(found.most for _, found in every))

    def place(at: float) -> float:
        share = (math.log10(at) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    parts = _frame(title, y, top)
    for at in sorted({at for at, _ in every}):
        parts.append(_text(place(at), _HEIGHT - _BOTTOM + 18, f"{at:,.0f}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x, "middle"))
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{place(at):.1f},{_height(found.median, top):.1f}" for at, found in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, found in points:
            parts.append(f'<circle cx="{place(at):.1f}" cy="{_height(found.median, top):.1f}" r="3" fill="{colour}"/>')
            parts.append(_range(place(at), found, top, colour))
        parts.append(_legend(number, name, colour))
    return _document(parts)


def bars(title: str, y: str, groups: Mapping[str, Mapping[str, Summary]]) -> str:
    """A bar for each median, grouped, with a bar from the least to the most."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    top = _ceiling(max(found.most for group in groups.values() for found in group.values()))
    room = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    width = room * 0.8 / len(names)
    parts = _frame(title, y, top)
    for place, (label, group) in enumerate(groups.items()):
        start = _LEFT + place * room + room * 0.1
        parts.append(_text(start + room * 0.4, _HEIGHT - _BOTTOM + 18, label, "middle"))
        for number, name in enumerate(names):
            if name not in group:
                continue
            colour, found = _COLOURS[number % len(_COLOURS)], group[name]
            left, height = start + number * width, _height(found.median, top)
            parts.append(
                f'<rect x="{left:.1f}" y="{height:.1f}" width="{width * 0.9:.1f}" '
                f'height="{_HEIGHT - _BOTTOM - height:.1f}" fill="{colour}"/>'
            )
            parts.append(_range(left + width * 0.45, found, top, "#111827"))
    if len(names) > 1:
        parts += [_legend(number, name, _COLOURS[number % len(_COLOURS)]) for number, name in enumerate(names)]
    return _document(parts)


def _ceiling(value: float) -> float:
    """A round number at or above the value."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(factor * unit for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * unit >= value * 0.999)


def _height(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _frame(title: str, y: str, top: float) -> list[str]:
    parts = [_text(_WIDTH / 2, 18, title, "middle", "bold"), _text(_LEFT, _TOP - 8, y, "end")]
    for step in range(5):
        value = top * step / 4
        height = _height(value, top)
        parts.append(
            f'<line x1="{_LEFT}" y1="{height:.1f}" x2="{_WIDTH - _RIGHT}" y2="{height:.1f}" stroke="#d1d5db"/>'
        )
        parts.append(_text(_LEFT - 8, height + 4, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", "end"))
    return parts


def _range(x: float, found: Summary, top: float, colour: str) -> str:
    least, most = _height(found.least, top), _height(found.most, top)
    return f'<line x1="{x:.1f}" y1="{least:.1f}" x2="{x:.1f}" y2="{most:.1f}" stroke="{colour}"/>'


def _legend(number: int, name: str, colour: str) -> str:
    x, y = _LEFT + 12 + number % 3 * 180, _TOP + 10 + number // 3 * 16
    return f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>' + _text(x + 16, y, name)


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _document(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#111827">\n<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
