"""python -m research.paper [--quick] [--bases ...] [--seeds ...] [--only PATTERN,...]

Makes every cell that is not there yet, main table first, then writes the report of all that are.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from research.paper.cells import Cell, CellStore
from research.paper.making import Maker, matching
from research.paper.measure import FULL, QUICK, Measurer
from research.paper.merge import tell
from research.paper.plan import ABLATIONS, LARGE_ENDING, plan
from research.paper.report import write_report
from research.paper.tables import Results
from training.config import Config
from training.generation import EngineName
from training.hf_model import open_base

logger = logging.getLogger("research.paper")

SMALL = ["models/tiny-qwen2", "models/tiny-llama", "models/tiny-qwen3"]
LARGE = [f"runs/{path}{LARGE_ENDING}" for path in SMALL]
HURRIED = ["models/tiny-qwen2-hurried"]  # its first choice is mostly wrong


class ReproduceConfig(Config):
    """Settings of the command."""

    program: ClassVar[str] = "python -m research.paper"

    bases: list[str] = Field(
        SMALL + HURRIED + LARGE,
        min_length=1,
        description="Folders or hub ids; ablations are of the first.",
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    ablations: list[str] = Field(list(ABLATIONS), description="Names of those wanted.")
    only: list[str] = Field(
        [], description="Make these alone, '*/grpo/*,*/base' say; report on all."
    )
    minutes: float | None = Field(None, gt=0, description="Begin no cell after so many.")
    engine: EngineName = Field(
        "auto", description="What samples; auto: vllm on a GPU, else transformers."
    )
    quick: bool = Field(False, description="One base, one seed, small, no ablations.")
    results: Path = Field(Path("research/results"), description="Report and merged cells.")
    work: Path = Field(Path("runs/reproduce"), description="New cells, adapters, rollouts.")

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Those of --quick."""
        if not given.get("quick"):
            return {}
        work = given.get("work", "runs/reproduce-quick")
        return {
            **{"bases": SMALL[:1], "seeds": [0], "ablations": []},
            **{"work": work, "results": f"{work}/results"},
        }

    @model_validator(mode="after")
    def _known(self) -> ReproduceConfig:
        if unknown := set(self.ablations) - set(ABLATIONS):
            raise ValueError(
                f"--ablations: '{min(unknown)}' is unknown; known: {', '.join(ABLATIONS)}"
            )
        names = [Path(base).name for base in self.bases]
        if len(set(names)) < len(names):
            raise ValueError("--bases: two of them have the same name")
        return self

    def plan(self) -> list[Cell]:
        """All cells, in order."""
        return plan([Path(base).name for base in self.bases], self.seeds, self.ablations)

    def store(self) -> CellStore:
        """The merged cells of `results` and the new ones of `work`."""
        return CellStore(self.results, self.work / "cells")


def engine_for(wanted: EngineName) -> EngineName:
    """auto: on a CPU without a bf16 unit transformers answers a miniature's cell sooner."""
    if wanted != "auto":
        return wanted
    return "vllm" if torch.cuda.is_available() else "transformers"


def fingerprints(bases: Sequence[str]) -> dict[str, str]:
    """Name -> fingerprint, of the bases that are there; a warning for each that is not."""
    found = {}
    for base in bases:
        name = Path(base).name
        try:
            found[name] = open_base(base).fingerprint
        except FileNotFoundError as error:
            make = f"python -m research.miniature pretrain --base {name.removeprefix('tiny-')}"
            logger.warning("no cells of %s: %s; make it: %s", name, error, make)
    return found


def reproduce(config: ReproduceConfig) -> list[str]:
    """Make the cells, write the report; the ids of those that failed."""
    cells, store = config.plan(), config.store()
    known = fingerprints(config.bases)
    measurer = Measurer(
        {Path(base).name: base for base in config.bases},
        config.work,
        QUICK if config.quick else FULL,
        engine_for(config.engine),
    )
    maker = Maker(store, config.minutes)
    there = [cell for cell in matching(cells, config.only) if cell.base in known]
    maker.make(there, measurer.make, lambda cell: known[cell.base])
    command = f"{config.program}{' --quick' if config.quick else ''}"
    report = write_report(Results(cells, store), config.results, command)
    page = config.results / "README.md"
    tell(report["claims"], page, store, config.work, config.results)
    return maker.failed


def main(argv: list[str] | None = None) -> None:
    """Exit code 2 on bad input, 1 if a cell failed."""
    config = ReproduceConfig.begin(argv)
    with config.usage_errors():
        failed = reproduce(config)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
