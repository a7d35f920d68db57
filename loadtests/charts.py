"""Charts as SVG, made by hand: they need no library, scale with the page and follow its colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 22, 26
MOST_POINTS = 240  # more are averaged: they would be narrower than a line is thick

SPAN = 1.05

Point = tuple[float, float | None]


class Line(NamedTuple):
    """One curve; `style` is a class of the style sheet."""

    name: str
    points: Sequence[Point]  # y None: a gap
    style: str


class Band(NamedTuple):
    """A stretch of the x axis with a name."""

    name: str
    start: float
    end: float


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` or below to `high` or above."""
    if high <= low:
        high = low + 1
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    thinned: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [y for _, y in part if y is not None]
        middle = sum(x for x, _ in part) / len(part)
        thinned.append((middle, sum(known) / len(known) if known else None))
    return thinned


def number(value: float) -> str:
    """As an axis shows it."""
    if value and abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.4g}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    *,
    unit: str = "",
    x_unit: str = "s",
    zero: bool = True,
    doubling: bool = False,
) -> str:
    """A figure with curves over time, or over numbers that double; empty if there is no point.

    Args:
        zero: the y axis begins at 0; else it spans SPAN at least, so that little looks like little.
        doubling: the x axis is logarithmic, with a tick at every x.
    """
    lines = [line._replace(points=thin(line.points)) for line in lines]
    lines = [line for line in lines if any(y is not None for _, y in line.points)]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None]
    y_ticks = ticks(0.0, max(ys)) if zero else ticks(min(ys), max(*ys, min(ys) * SPAN))
    x_ticks = sorted(set(xs)) if doubling else ticks(0.0, max(xs), 6)
    if not doubling:
        x_ticks = [x for x in x_ticks if x <= max(xs) + 1e-9]

    def across(x: float) -> float:
        if doubling:
            low, high = math.log(min(xs)), math.log(max(xs))
            share = (math.log(x) - low) / (high - low) if high > low else 0.5
        else:
            share = x / max(*xs, 1e-9)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for index, band in enumerate(bands):
        start, end = across(min(band.start, max(xs))), across(min(band.end, max(xs)))
        if index % 2:
            parts.append(
                f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
            )
        if end - start > 6 * len(band.name):
            parts.append(
                f'<text class="phase" x="{(start + end) / 2:.1f}" y="{TOP - 7}">'
                f"{escape(band.name)}</text>"
            )
    for y in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" '
            f'y2="{up(y):.1f}"/><text class="y" x="{LEFT - 7}" y="{up(y) + 4:.1f}">'
            f"{number(y)}</text>"
        )
    for x in x_ticks:
        label = number(x) + (f" {x_unit}" if x == x_ticks[-1] and x_unit else "")
        parts.append(
            f'<text class="x" x="{min(across(x), WIDTH - 16):.1f}" y="{HEIGHT - 8}">{label}</text>'
        )
    for line in lines:
        parts.append(f'<path class="{line.style}" d="{_path(line.points, across, up)}"/>')
        if doubling:
            parts += [
                f'<circle class="{line.style}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>'
                for x, y in line.points
                if y is not None
            ]
    return _figure(title, unit, [(line.name, line.style) for line in lines], parts)


def _path(points: Sequence[Point], across: object, up: object) -> str:
    assert callable(across) and callable(up)
    path, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        # h0: a point without neighbours is a dot.
        path.append(f"{pen}{across(x):.1f} {up(y):.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(path)


class Bar(NamedTuple):
    """A bar with a whisker from the lowest to the highest run."""

    value: float
    low: float
    high: float
    style: str
    name: str


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], unit: str = "") -> str:
    """Bars in groups, each group under its name."""
    if not groups:
        return ""
    y_ticks = ticks(0.0, max(bar.high for _, bars in groups for bar in bars))
    top = y_ticks[-1]

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text class="y" x="{LEFT - 7}" y="{up(y) + 4:.1f}">{number(y)}</text>'
        for y in y_ticks
    ]
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    for place, (name, bars) in enumerate(groups):
        width = 0.8 * room / max(1, len(bars))
        begin = LEFT + (place + 0.1) * room
        for index, bar in enumerate(bars):
            x = begin + index * width
            middle = x + width / 2
            said = f"{bar.name}: {number(bar.value)} ({number(bar.low)}-{number(bar.high)}) {unit}"
            parts.append(
                f'<rect class="bar {bar.style}" x="{x + 1:.1f}" y="{up(bar.value):.1f}" '
                f'width="{width - 2:.1f}" height="{HEIGHT - BOTTOM - up(bar.value):.1f}">'
                f"<title>{escape(said)}</title></rect>"
            )
            if bar.high > bar.low:
                parts.append(
                    f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" '
                    f'y1="{up(bar.low):.1f}" y2="{up(bar.high):.1f}"/>'
                )
        parts.append(
            f'<text class="x" x="{begin + 0.4 * room:.1f}" y="{HEIGHT - 8}">{escape(name)}</text>'
        )
    names = dict.fromkeys((bar.name, bar.style) for _, bars in groups for bar in bars)
    return _figure(title, unit, list(names), parts)


def _figure(title: str, unit: str, legend: Sequence[tuple[str, str]], parts: list[str]) -> str:
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 18 8" width="18" height="8">'
        f'<path class="{style}" d="M1 4L17 4"/></svg>{escape(name)}</span>'
        for name, style in legend
        if name
    )
    said = f"<small>{escape(unit)}</small>" if unit else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{said}<span class=keys>{keys}</span>"
        f'</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
