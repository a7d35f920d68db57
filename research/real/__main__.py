"""reasonmaxxer reproduce --suite real [--bases ...] [--only PATTERN,...] [--minutes N]

Makes every cell that is not there yet, what answers most first, then writes the report of all that
are. A cell is the answers to one task, given in one way: some minutes. A killed run goes on where
it stopped, within a cell too.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from research.paper.cells import Cell, CellStore
from research.paper.making import Maker, matching
from research.paper.merge import tell
from research.real.measure import FULL, QUICK, Measurer
from research.real.plan import RULE, plan
from research.real.report import write_report
from research.real.tables import Results
from research.real.tasks import candidates
from training.generation import EngineName
from training.problems.settings import ProblemsConfig

logger = logging.getLogger("research.real")

BASES = [
    "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "google/gemma-3-270m",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
]


class RealConfig(ProblemsConfig):
    """Settings of the command."""

    program: ClassVar[str] = "python -m research.real"

    bases: list[str] = Field(BASES, min_length=1, description="Folders or hub ids.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds of the trainings.")
    tasks: list[str] = Field([], description="Measure and report these alone, and ask no rule.")
    only: list[str] = Field(
        [],
        description="Make these cells alone, '*/base/*,*/gated/gsm8k/*' say; report on all.",
    )
    minutes: float | None = Field(None, gt=0, description="Begin no cell after so many.")
    engine: EngineName = Field("auto", description="What samples and answers.")
    nice: int = Field(10, ge=0, le=19, description="Priority: 0 is normal, 19 the lowest.")
    quick: bool = Field(False, description="One seed, few problems: does it run?")
    results: Path = Field(Path("research/results"), description="Report and merged cells.")
    work: Path = Field(Path("runs/real"), description="New cells, adapters, rollouts, answers.")

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Those of --quick."""
        if not given.get("quick"):
            return {}
        work = given.get("work", "runs/real-quick")
        return {"bases": BASES[:1], "seeds": [0], "work": work, "results": f"{work}/results"}

    @model_validator(mode="after")
    def _different(self) -> RealConfig:
        if len({Path(base).name for base in self.bases}) < len(self.bases):
            raise ValueError("--bases: two of them have the same name")
        if unknown := set(self.tasks) - candidates(1, 1).keys():
            known = ", ".join(candidates(1, 1))
            raise ValueError(f"--tasks: '{min(unknown)}' is unknown; known: {known}")
        return self

    def store(self) -> CellStore:
        """The merged cells of `results` and the new ones of `work`."""
        return CellStore(self.results, self.work / "cells")

    def measured(self, base: str, store: CellStore) -> list[str]:
        """The tasks of a base; empty: the rule is not applied yet."""
        rule = store.read(Cell(base, RULE))
        return self.tasks or (rule["measured"] if rule else [])

    def results_of(self, base: str, store: CellStore) -> Results:
        """What is planned and what is there."""
        tasks = self.measured(base, store)
        cells = plan(base, self.seeds, tasks)
        return Results(cells[1:] if self.tasks else cells, store, tasks)


def measure(config: RealConfig, model: str, store: CellStore, maker: Maker) -> None:
    """Make the cells of one base."""
    base = Path(model).name
    measurer = Measurer(
        model, config.work, QUICK if config.quick else FULL, config.engine, config.data_dir
    )

    def make(cells: list[Cell]) -> None:
        maker.make(cells, measurer.make, lambda _: measurer.base.fingerprint, base)

    with closing(measurer):
        if not config.tasks:
            make([Cell(base, RULE)])
        measurer.names = config.measured(base, store)
        if measurer.names:
            make(matching(config.results_of(base, store).cells, config.only))


def reproduce(config: RealConfig) -> list[str]:
    """Make the cells of all bases, write the report; the ids of those that failed."""
    store = config.store()
    maker = Maker(store, config.minutes)
    for model in config.bases:
        try:
            measure(config, model, store, maker)
        except FileNotFoundError as error:
            logger.warning("no cells of %s: %s", Path(model).name, error)
    names = [Path(model).name for model in config.bases]
    found = {name: config.results_of(name, store) for name in names}
    size = QUICK if config.quick else FULL
    command = f"reasonmaxxer reproduce --suite real{' --quick' if config.quick else ''}"
    report = write_report(found, config.results, command, size.rule, size.samples)
    page = config.results / "real.md"
    tell(report["claims"], page, store, config.work, config.results)
    return maker.failed


def main(argv: list[str] | None = None) -> None:
    """Exit code 2 on bad input, 1 if a cell failed."""
    config = RealConfig.begin(argv)
    os.nice(config.nice)
    with config.usage_errors():
        failed = reproduce(config)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
