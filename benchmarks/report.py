"""What every benchmark says beside its figures: medians with spread, versions, the machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.files import write_json
from training.provenance import machine


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum and number of runs."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


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
