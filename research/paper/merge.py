"""Move new cells into the two files that are kept with the code, or remove cells.

python -m research.paper.merge                                   what `make reproduce` made
python -m research.paper.merge --drop 'tiny-llama/*'             to make these cells anew
python -m research.paper.merge --work OTHER/runs/reproduce       another machine's cells
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from research.paper.cells import CellStore
from training.config import Config


class MergeConfig(Config):
    """Settings of the command."""

    program: ClassVar[str] = "python -m research.paper.merge"

    results: Path = Field(Path("research/results"), description="Folder of merged cells.")
    work: Path = Field(Path("runs/reproduce"), description="New cells are in its folder `cells`.")
    drop: list[str] = Field(
        [], description="Remove the cells with these ids first, new and merged: 'tiny-llama/*'."
    )


def tell(
    claims: Sequence[dict[str, Any]], page: Path, store: CellStore, work: Path, results: Path
) -> None:
    """Print the verdicts of a report, where it is, and which command merges its new cells."""
    for claim in claims:
        print(f"{claim['verdict']}: {claim['text']}")
        print("".join(f"    {line}\n" for line in claim["measured"]), end="")
    print(f"\n{page}")
    if new := len(store.new()):
        where = f"--work {work} --results {results}"
        print(f"{new} cells are not merged yet: {MergeConfig.program} {where}")


def main(argv: list[str] | None = None) -> None:
    """Exit code 2 on bad input."""
    config = MergeConfig.load(argv)
    store = CellStore(config.results, config.work / "cells")
    with config.usage_errors():
        dropped, merged = store.drop(config.drop), store.merge()
    print(f"{len(dropped)} cells removed, {len(merged)} merged into {config.results}")


if __name__ == "__main__":
    main()
