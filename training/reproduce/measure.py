"""How each kind of cell is made. What is large stays in the work folder; a cell is its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base import BaseModel
from adapters.files import write_text
from adapters.manifest import Manifest
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from training.evaluate import evaluate_generator
from training.generate import Applied, Engine, SamplingOptions, open_generator
from training.model import open_base
from training.problems import Problem, load_problems
from training.reproduce.cell import Cell
from training.reproduce.plan import METHOD
from training.tiny.benchmarks import BENCHMARKS, benchmark_problems
from training.verify import Verifier

FIRST_SEED = 10  # seeds below it are the corpus' own, whose problems a base has seen


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    problems: int = 400  # given to a fit, of which a quarter choose
    questions: int | None = None  # of each benchmark; None: all
    fit: tuple[str, ...] = ()  # further flags of training.fit
    grpo: tuple[str, ...] = ()  # and of training.grpo


FULL = Size()
QUICK = Size(
    problems=120,
    questions=20,
    fit=("--sampling.rollouts", "8", "--checkpoints.samples", "1"),
    grpo=("--max-steps", "20", "--every", "10", "--samples", "1"),
)


class Measurer:
    """Makes cells of bases.

    Args:
        bases: name -> the model, a folder or a hub id.
        work: where fits, models and answers lie; a killed cell goes on from there.
    """

    def __init__(self, bases: dict[str, str], work: Path, size: Size, engine: Engine) -> None:
        self._bases, self._work, self._size, self._engine = bases, work, size, engine

    def make(self, cell: Cell) -> dict[str, Any]:
        """The result of `cell`."""
        return {
            "base": self.base,
            "fit": self.fit,
            "grpo": self.grpo,
            "footprint": self.footprint,
            "intervene": self.intervene,
        }[cell.kind](cell)

    def base(self, cell: Cell) -> dict[str, Any]:
        """The base on all benchmarks; in transformers too, where the gate by lot is drawn."""
        base = open_base(self._bases[cell.base])
        return {
            "base": self.answers(base, None, self._engine),
            "base, transformers": self.answers(base, None, "transformers"),
        }

    def fit(self, cell: Cell) -> dict[str, Any]:
        """An adapter, behind its gate and at every step; the method's behind a gate by lot too."""
        folder, run = self.adapter(cell), self._fit_run(cell)
        report = json.loads((run / "report.json").read_text())
        seconds = json.loads((run / "seconds.json").read_text())
        gate = Manifest.read(folder).gate
        assert gate is not None  # a fit always calibrates one
        base = open_base(self._bases[cell.base])
        ways = {"gated": Applied(folder, gate.tau), "always": Applied(folder)}
        found = {name: self.answers(base, way, self._engine) for name, way in ways.items()}
        if cell.variant == METHOD:
            lot = Applied(folder, random_rate=gate.rate)
            found["by lot"] = self.answers(base, lot, "transformers")
        return {
            **found,
            "tau": gate.tau,
            "cost": {
                "tokens": report["tokens"]["rollouts"],
                "heldout_tokens": report["tokens"]["heldout"],
                "steps": report["steps"],
                "seconds": round(sum(seconds.values()), 1),
            },
            "warnings": report["warnings"],
        }

    def adapter(self, cell: Cell) -> Path:
        """Fit it; nothing is done again."""
        folder = self.folder(cell)
        self.run_module(
            *("training.fit", "--model", self._bases[cell.base], "--seed", str(cell.seed)),
            *("--problems", str(self.training_problems(cell))),
            *("--run-dir", str(self._fit_run(cell)), "--output", str(folder)),
            *("--engine", self._engine, *self._size.fit, *cell.flags),
        )
        return folder

    def _fit_run(self, cell: Cell) -> Path:
        """One for all variants of a seed, which so train on the same rollouts."""
        return self._work / "seeds" / cell.base / str(cell.seed) / "fit"

    def grpo(self, cell: Cell) -> dict[str, Any]:
        """GRPO on the problems that a fit gets."""
        folder, run = self.grpo_model(cell), self._grpo_run(cell)
        report = json.loads((run / "report.json").read_text())
        return {
            "grpo": self.answers(open_base(str(folder)), None, self._engine, cell.base),
            "cost": {
                name: report[name] for name in ("tokens", "heldout_tokens", "steps", "seconds")
            },
            "kept": report["kept"],
            "stopped_rising": report["stopped_rising"],
            "looks": report["looks"],
        }

    def grpo_model(self, cell: Cell) -> Path:
        """Train it, or go on from its last checkpoint."""
        folder = self.folder(cell)
        if not folder.exists():
            train, heldout = self.split(cell)
            self.run_module(
                *("training.grpo", "--model", self._bases[cell.base], "--seed", str(cell.seed)),
                *("--problems", str(train), "--heldout", str(heldout)),
                *("--run-dir", str(self._grpo_run(cell)), "--output", str(folder)),
                *("--engine", self._engine, *self._size.grpo, *cell.flags),
            )
        return folder

    def _grpo_run(self, cell: Cell) -> Path:
        return self._work / "grpo" / cell.base / str(cell.seed)

    def footprint(self, cell: Cell) -> dict[str, Any]:
        """What was tuned against its base."""
        return self._look("training.footprint", cell)

    def intervene(self, cell: Cell) -> dict[str, Any]:
        """Its token at oracle, random and uncertain positions."""
        return self._look("training.intervene", cell)

    def _look(self, module: str, cell: Cell) -> dict[str, Any]:
        """The report of `module`; what was tuned is made anew where another machine has it."""
        if cell.variant == "grpo":
            tuned = self.grpo_model(Cell(cell.base, "grpo", seed=cell.seed))
        else:
            tuned = self.adapter(Cell(cell.base, "fit", cell.variant, cell.seed))
        output = self._work / "runs" / cell.id
        self.run_module(
            *(module, "--model", self._bases[cell.base], "--tuned", str(tuned)),
            *("--problems", str(self.all_questions()), "--engine", self._engine),
            *("--seed", str(cell.seed), "--output", str(output)),
        )
        found: dict[str, Any] = json.loads((output / "report.json").read_text())
        return found | {"tuned": cell.variant}

    # --------------------------------------------------------------------------- what they share

    def answers(
        self, model: BaseModel, applied: Applied | None, engine: Engine, family_of: str = ""
    ) -> dict[str, Any]:
        """Benchmark -> what the model answers: mean correctness of each problem, and the rest."""
        name = family_of or model.name
        recipe = recipe_for(name, model.model_type)
        renderer = PromptRenderer.load(model.folder, recipe.prompt)
        asked = {name: self.questions(name) for name in BENCHMARKS}
        longest = max(
            len(renderer.token_ids(one.problem)) for problems in asked.values() for one in problems
        )
        rank = 64 if applied else None
        found = {}
        with (
            Verifier() as verifier,
            open_generator(
                str(model.folder),
                engine=engine,
                max_rank=rank,
                gated=applied is not None and applied.tau is not None,
                max_model_len=longest + recipe.sampling.max_tokens,
            ) as generator,
        ):
            for name, problems in asked.items():
                options = SamplingOptions(
                    BENCHMARKS[name].samples,
                    recipe.sampling.temperature,
                    recipe.sampling.top_p,
                    recipe.sampling.max_tokens,
                )
                result = evaluate_generator(
                    generator, renderer, problems, options, verifier, applied, label=name
                )
                found[name] = {
                    "scores": [round(float(score), 4) for score in result.scores],
                    "tokens": int(result.tokens.sum()),
                    "gated": int(result.gated.sum()),
                    "boxed": round(result.boxed_rate.value, 4),
                }
        return found

    def questions(self, benchmark: str) -> list[Problem]:
        """Of a benchmark, as many as are asked."""
        rows = benchmark_problems(benchmark)[: self._size.questions]
        return [Problem(**row.model_dump(include={"id", "problem", "answer"})) for row in rows]

    def all_questions(self) -> Path:
        """Those of all benchmarks, each once, as a file."""
        path = self._work / "questions.jsonl"
        rows = {one.id: one for name in BENCHMARKS for one in self.questions(name)}
        write_text(path, "".join(one.model_dump_json() + "\n" for one in rows.values()))
        return path

    def training_problems(self, cell: Cell) -> Path:
        """Those a fit gets; a seed of its own each."""
        path = self._fit_run(cell).with_name("problems.jsonl")
        if not path.exists():
            assert cell.seed is not None
            self.run_module(
                *("training.tiny", "problems", "--seed", str(FIRST_SEED + cell.seed)),
                *("--count", str(self._size.problems), "--out", str(path)),
            )
        return path

    def split(self, cell: Cell) -> tuple[Path, Path]:
        """The same as two files: to train on, and the last quarter to choose by."""
        path = self.training_problems(cell)
        problems = load_problems(str(path))
        cut = len(problems) * 3 // 4
        files = path.with_name("train.jsonl"), path.with_name("heldout.jsonl")
        for file, part in zip(files, (problems[:cut], problems[cut:]), strict=True):
            write_text(file, "".join(one.model_dump_json() + "\n" for one in part))
        return files

    def folder(self, cell: Cell) -> Path:
        """Where the adapter or model of a cell lies."""
        return self._work / "tuned" / cell.id

    @staticmethod
    def run_module(*arguments: str) -> None:
        """Run `python -m arguments...`; it shows its own progress."""
        subprocess.run([sys.executable, "-m", *arguments], check=True)


def total(answers: dict[str, Any], what: str) -> int:
    """Of all benchmarks."""
    return sum(int(one[what]) for one in answers.values())


def all_scores(answers: dict[str, Any]) -> Sequence[float]:
    """Of all problems, benchmark by benchmark."""
    return [score for name in BENCHMARKS for score in answers[name]["scores"]]
