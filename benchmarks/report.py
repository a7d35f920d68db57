"""What every benchmark says beside its figures: medians with spread, versions, the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adapters.files import write_json
from training.provenance import machine

Ran = TypeVar("Ran")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum and number of runs."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def spreads(
    found: dict[str, list[dict[str, float]]], figures: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Of the runs of each way, the spread of each figure."""
    return {
        way: {figure: spread([one[figure] for one in runs]) for figure in figures}
        for way, runs in found.items()
    }


def ratios(values: Sequence[float], beside: Sequence[float]) -> list[float]:
    """Run by run: the two were measured in the same turn."""
    return [one / other for one, other in zip(values, beside, strict=True)]


def in_turns(ways: Iterable[str], runs: int, run: Callable[[str], Ran]) -> dict[str, list[Ran]]:
    """`runs` runs of each way; what else the machine does falls on all of them.

    Each turn begins with another way.
    """
    names = list(ways)
    found: dict[str, list[Ran]] = {name: [] for name in names}
    for turn in range(runs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(run(name))
    return found


def show(values: Sequence[float], digits: int = 0) -> str:
    """median (min-max)"""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


def save(name: str, result: dict[str, Any]) -> None:
    """Write runs/benchmarks/NAME.json with the machine beside the figures."""
    path = Path("runs/benchmarks", f"{name}.json")
    write_json(path, {"machine": machine(), **result})
    print(f"\n{path}")
