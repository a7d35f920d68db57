"""How each kind of cell is made. What is large stays in the work folder; a cell is its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from adapters.adapter import WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_text
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, find_recipe
from research.fits import cost_of, gate_of, run_module
from research.miniature.benchmarks import BENCHMARKS, benchmark_problems
from research.miniature.world import puzzles
from research.paper.cells import Cell
from research.paper.plan import COOLED, METHOD
from training.evaluation import Evaluation, evaluate_generator
from training.generation import (
    Applied,
    EngineName,
    SamplingOptions,
    longest_sequence,
    open_generator,
    vllm_is_here,
)
from training.grading import Verifier
from training.hf_model import open_base
from training.problems import Problem

# Of research.paper.grpo: all weights of a miniature take a learning rate far above its default.
GRPO = ("--learning-rate", "1e-4", "--patience", "3")
# The cells were made when adapters were fitted at every position, on rollouts with a top_p.
TOP_P = 0.95
AS_BEFORE = (
    *("--objective.positions", "all", "--objective.kl-positions", "none"),
    *("--sampling.top-p", str(TOP_P)),
)
FIRST_SEED = 10  # seeds below it are the corpus' own, whose problems a base has seen


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    problems: int = 300  # to train on
    limit: int = 64  # of them, given to a fit that says nothing else
    heldout: int = 100  # to choose by
    questions: int | None = None  # of each benchmark; None: all
    fit: tuple[str, ...] = ()  # further flags of training.fit
    grpo: tuple[str, ...] = GRPO


FULL = Size()
QUICK = Size(
    limit=32,
    questions=20,
    fit=("--sampling.rollouts", "8", "--checkpoints.samples", "1", "--checkpoints.every", "1"),
    grpo=(*GRPO, "--max-steps", "20", "--every", "10", "--samples", "1"),
)


class Measurer:
    """Makes cells of bases.

    Args:
        bases: name -> the model, a folder or a hub id.
        work: where fits, models and answers lie; a killed cell goes on from there.
        engine: what samples and answers.
    """

    def __init__(self, bases: dict[str, str], work: Path, size: Size, engine: EngineName) -> None:
        self._bases, self._work, self._size, self._engine = bases, work, size, engine

    def make(self, cell: Cell) -> dict[str, Any]:
        """The result of `cell`."""
        return {
            "base": self.base,
            "fit": self.fit,
            "grpo": self.grpo,
            "footprint": self.look,
            "intervene": self.look,
            "greedy": self.greedy,
        }[cell.kind](cell)

    def base(self, cell: Cell) -> dict[str, Any]:
        """The base on all benchmarks, by each engine: each adapter is held against its own's."""
        base = open_base(self._bases[cell.base])
        engines: list[EngineName] = ["transformers", "vllm"] if vllm_is_here() else ["transformers"]
        found: dict[str, Any] = {one: self.answers(base, None, one) for one in engines}
        found["greedy"] = self.answers(base, None, "transformers", temperature=0)
        return found

    def fit(self, cell: Cell) -> dict[str, Any]:
        """An adapter behind its gate.

        The method's at every step and behind a random gate too, and as it is served: by vLLM. Where
        its gate has a temperature, also without it, and its base behind the same gate.
        """
        folder, run = self.adapter(cell), self._fit_run(cell)
        report = json.loads((run / "report.json").read_text())
        seconds = json.loads((run / "seconds.json").read_text())
        gate = gate_of(folder)
        base = open_base(self._bases[cell.base])
        gated = Applied.behind(folder, gate)
        found = {"gated": self.answers(base, gated, self._engine)}
        recipe = recipe_of(folder)
        if cell.variant in (METHOD, COOLED) and recipe["gate"]["temperatures"]:
            found["warm"] = self.answers(base, Applied(folder, gate.tau), self._engine)
            alone = Applied.behind(untrained(folder, run / "untrained"), gate)
            found["base"] = self.answers(base, alone, self._engine)
        if cell.variant == METHOD:
            found["always"] = self.answers(base, Applied(folder), self._engine)
            control = Applied.at_random(folder, gate)
            found["by lot"] = self.answers(base, control, "transformers")
        if cell.variant in (METHOD, COOLED) and vllm_is_here():
            found["served"] = self.answers(base, gated, "vllm")
        return {
            **found,
            "engine": self._engine,
            "tau": gate.tau,
            "temperature": gate.temperature,
            "recipe": recipe,
            "cost": cost_of(report, seconds),
            "warnings": report["warnings"],
        }

    def adapter(self, cell: Cell) -> Path:
        """Fit it; nothing is done again."""
        folder = self.folder(cell)
        train, heldout = self.problems(cell)
        limit = () if "--limit" in cell.flags else ("--limit", str(self._size.limit))
        run_module(
            *("training.fit", "--model", self._bases[cell.base], "--seed", str(cell.seed)),
            *("--problems", str(train), "--heldout", str(heldout)),
            *("--run-dir", str(self._fit_run(cell)), "--output", str(folder)),
            *("--engine", self._engine, *limit, *AS_BEFORE, *cell.flags, *self._size.fit),
        )
        return folder

    def _fit_run(self, cell: Cell) -> Path:
        """One for all variants of a seed, which so train on the same rollouts."""
        return self._work / "seeds" / cell.base / str(cell.seed) / "fit"

    def grpo(self, cell: Cell) -> dict[str, Any]:
        """GRPO on the problems of which a fit gets some."""
        folder, run = self.grpo_model(cell), self._grpo_run(cell)
        report = json.loads((run / "report.json").read_text())
        return {
            "grpo": self.answers(open_base(str(folder)), None, self._engine, cell.base),
            "engine": self._engine,
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
            train, heldout = self.problems(cell)
            run_module(
                *("research.paper.grpo", "--model", self._bases[cell.base]),
                *("--seed", str(cell.seed), "--problems", str(train), "--heldout", str(heldout)),
                *("--run-dir", str(self._grpo_run(cell)), "--output", str(folder)),
                *("--engine", self._engine, *self._size.grpo, *cell.flags),
            )
        return folder

    def _grpo_run(self, cell: Cell) -> Path:
        return self._work / "grpo" / cell.base / str(cell.seed)

    def greedy(self, cell: Cell) -> dict[str, Any]:
        """What was tuned, at T 0: what it would choose, however sure it is of it."""
        tuned = self.tuned(cell)
        if cell.variant == "grpo":
            found = self.answers(open_base(str(tuned)), None, self._engine, cell.base, 0)
        else:
            base, applied = open_base(self._bases[cell.base]), Applied.behind(tuned, gate_of(tuned))
            found = self.answers(base, applied, self._engine, temperature=0)
        return {"greedy": found, "engine": self._engine}

    def tuned(self, cell: Cell) -> Path:
        """The adapter or model that `cell` looks at; made anew where another machine has it."""
        if cell.variant == "grpo":
            return self.grpo_model(Cell(cell.base, "grpo", seed=cell.seed))
        return self.adapter(Cell(cell.base, "fit", cell.variant, cell.seed, cell.flags))

    def look(self, cell: Cell) -> dict[str, Any]:
        """Footprint or interventions of what was tuned."""
        tuned = self.tuned(cell)
        output = self._work / "runs" / cell.id
        # What replays an intervention is the engine that serves, wherever it is installed.
        replays = cell.kind == "intervene" and vllm_is_here()
        engine: EngineName = "vllm" if replays else self._engine
        run_module(
            *(f"research.paper.{cell.kind}", "--model", self._bases[cell.base]),
            *("--tuned", str(tuned)),
            *("--problems", str(self.all_questions()), "--engine", engine),
            *("--seed", str(cell.seed), "--output", str(output)),
        )
        found: dict[str, Any] = json.loads((output / "report.json").read_text())
        return found | {"tuned": cell.variant}

    # --------------------------------------------------------------------------- what they share

    def answers(
        self,
        model: BaseCheckpoint,
        applied: Applied | None,
        engine: EngineName,
        family_of: str = "",
        temperature: float | None = None,
    ) -> dict[str, Any]:
        """Benchmark -> what the model answers: mean correctness of each problem, and the rest."""
        facts = model.facts._replace(names=(family_of,)) if family_of else model.facts
        recipe = find_recipe(facts).recipe
        if temperature is None:
            temperature = recipe.sampling.temperature
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
                max_model_len=longest_sequence(
                    str(model.folder), longest, recipe.sampling.max_tokens
                ),
            ) as generator,
        ):
            for name, problems in asked.items():
                options = SamplingOptions(
                    BENCHMARKS[name].samples if temperature else 1,
                    temperature,
                    TOP_P,
                    recipe.sampling.max_tokens,
                )
                evaluation = Evaluation(problems, renderer, options, verifier)
                result = evaluate_generator(generator, evaluation, applied, name)
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

    def problems(self, cell: Cell) -> tuple[Path, Path]:
        """Two files: to train on and to choose by. A seed has its own."""
        assert cell.seed is not None
        size, folder = self._size, self._fit_run(cell).parent
        files = folder / "train.jsonl", folder / "heldout.jsonl"
        if not files[1].exists():
            stream = puzzles(FIRST_SEED + cell.seed, "train")
            rows = [
                one.problem.model_dump_json() + "\n"
                for one in islice(stream, size.problems + size.heldout)
            ]
            write_text(files[0], "".join(rows[: size.problems]))
            write_text(files[1], "".join(rows[size.problems :]))
        return files

    def folder(self, cell: Cell) -> Path:
        """Where the adapter or model of a cell lies."""
        return self._work / "tuned" / cell.id


def untrained(adapter: Path, folder: Path) -> Path:
    """A copy of `adapter` in `folder` that changes nothing: the base, wherever it runs."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    weights = load_file(adapter / WEIGHTS)
    nothing = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()}
    save_file(nothing, folder / WEIGHTS)
    return folder


def recipe_of(adapter: Path) -> dict[str, Any]:
    """What it was fitted with: the recipe's sections and the number of problems."""
    settings = yaml.safe_load((adapter / "fit.yaml").read_text())
    return {name: settings[name] for name in ("limit", *Recipe.model_fields) if name in settings}


def total(answers: dict[str, Any], what: str) -> int:
    """Of all benchmarks."""
    return sum(int(one[what]) for one in answers.values())


def all_scores(answers: dict[str, Any]) -> Sequence[float]:
    """Of all problems, benchmark by benchmark."""
    return [score for name in BENCHMARKS for score in answers[name]["scores"]]
