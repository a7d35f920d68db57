"""The report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit(
        f"figures need matplotlib: uv pip install -e '.[research]' ({error})"
    ) from error

from adapters.files import atomic_write
from research.paper.plan import METHOD
from research.paper.tables import Row


def plot_ablations(rows: Sequence[Row], path: Path) -> None:
    """Gain over the base with its standard error, a bar each."""
    figure = Figure(figsize=(8, 0.28 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    gains = [one.gain for one in rows if one.gain]
    axes.barh(
        [one.label for one in rows],
        [gain.value for gain in gains],
        xerr=[gain.stderr for gain in gains],
        color=["tab:blue" if one.label == METHOD else "lightsteelblue" for one in rows],
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="gain over the base, pass@1, gated")
    _save(figure, path)


def plot_overlaps(footprints: dict[str, dict[str, Any]], path: Path) -> None:
    """Precision and recall of the gate as a finder of changed positions, over its rate.

    Args:
        footprints: what was tuned -> its footprint (research/paper/footprint.py).
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("precision", "recall"), strict=True):
        for label, one in footprints.items():
            rates = [row["gate_rate"] for row in one["overlap"]]
            axes.plot(rates, [row[name] for row in one["overlap"]], marker="o", label=label)
        axes.set(xlabel="gate rate (H > tau)", xscale="log", ylim=(0, 1), title=name)
    axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
