"""Charts as SVG, drawn by matplotlib: grey text on no background, for a page light or dark."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

MAX_POINTS = 240  # of a curve; more are averaged
MIN_SPAN = 1.05  # highest / lowest value of a y axis that does not begin at 0
GREY = "#7d8893"
STYLE = {
    **{"xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0},
    **{"svg.fonttype": "none", "font.size": 8, "axes.grid": True, "axes.grid.axis": "y"},
    **{"grid.color": GREY, "grid.alpha": 0.25, "lines.linewidth": 1.3, "axes.edgecolor": GREY},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
}

Point = tuple[float, float | None]


class Line(NamedTuple):
    """One curve."""

    name: str
    points: Sequence[Point]  # y None: a gap
    colour: str


class Chart(NamedTuple):
    """A chart and its caption."""

    title: str
    unit: str
    svg: str


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / most) or 1
    thinned: list[Point] = []
    for part in (points[start : start + size] for start in range(0, len(points), size)):
        known = [y for _, y in part if y is not None]
        x = sum(x for x, _ in part) / len(part)
        thinned.append((x, sum(known) / len(known) if known else None))
    return thinned


def line_chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    x_unit: str = "s",
    bands: Sequence[tuple[str, float, float]] = (),
    zero: bool = True,
    doubling: bool = False,
) -> Chart | None:
    """Curves over time, or over numbers that double; None without a point.

    Args:
        bands: names, starts and ends of parts of the x axis.
        zero: the y axis begins at 0; else it spans MIN_SPAN, so that a small change looks small.
        doubling: the x axis is logarithmic, with a tick at every x.
    """
    lines = [line for line in lines if any(y is not None for _, y in line.points)]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.4), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line, doubling)
        for index, (name, start, end) in enumerate(bands):
            axes.axvspan(start, end, color=GREY, alpha=0.12 * (index % 2), lw=0)
            if end - start > len(name) * bands[-1][2] / 80:
                above = axes.get_xaxis_transform()
                axes.text((start + end) / 2, 1.01, name, transform=above, ha="center", va="bottom")
        low, high = axes.get_ylim()
        axes.set_ylim(0 if zero else low, 1.03 * high if zero else max(high, low * MIN_SPAN))
        if doubling:
            xs = sorted({x for line in lines for x, _ in line.points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x:g}" for x in xs])
        else:
            axes.margins(x=0)
        axes.set_xlabel(x_unit)
        figure.legend(loc="outside upper right", ncols=5, frameon=False, handlelength=1)
        file = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": title}):  # the same page each time
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
        return Chart(title, unit, text[text.index("<svg") :])


def _draw(axes: Any, line: Line, doubling: bool) -> None:
    """One curve; a point without neighbours is a dot."""
    x, y = np.array(thin(line.points), dtype=float).T
    known = np.pad(~np.isnan(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    marker, every = "o" if doubling or alone.any() else "", None if doubling else alone.tolist()
    axes.plot(x, y, label=line.name, color=line.colour, marker=marker, ms=3, markevery=every)
