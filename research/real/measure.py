"""How each kind of cell is made. What is large stays in the work folder; a cell is its figures.

All fits of a base share one set of rollouts, of all its tasks that have training problems, and the
base's caches over them: `--seed 0 --training-seed N --base-cache.keep`. What differs between seeds
is training alone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adapters.adapter import AdapterVersion
from adapters.files import write_json
from adapters.manifest import Gate, Manifest
from adapters.prompt import PromptRenderer, read_tokenizer
from adapters.recipe import recipe_for
from research.paper.cells import Cell
from research.real import plan
from research.real.signal import signal
from research.real.tasks import admitted, candidates, fits_rule, problems_to_test
from research.real.vote import answer_texts, vote_scores
from training.evaluation import Result, evaluate_generator
from training.fit_config import FitConfig
from training.generation import (
    Applied,
    EngineName,
    Guidance,
    SamplingOptions,
    open_generator,
)
from training.grading import Verifier
from training.hf_model import open_base
from training.problems import Problem, load_problems, write_problems
from training.problems.overlap import overlaps
from training.stages.publish import publish_zeros
from vllm_gate.params import NEGATIVE

GUIDANCE_SCALE = 1.5  # 1: none
TOLD = ("report", "seconds")  # files of a run folder
# Of the cell `template`: what stands beside the question in place of the recipe's instruction.
OTHER_INSTRUCTION = "Solve the problem. End with the final answer in \\boxed{}."


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    rule: int = 40  # training problems that the rule looks at
    drawn: int = 120  # training problems of each generator; none of them is tested on
    problems: int = 320  # of all tasks together, that a fit is given
    questions: int = 300  # test problems of each task
    samples: int = 4  # the base's answers to each, of which self-consistency votes
    looks: int = 40  # test problems of each task, for footprint and interventions
    signal: int = 48  # rollouts
    max_tokens: int = 300
    fit: tuple[str, ...] = ()  # further flags of training.fit
    sft: tuple[str, ...] = ()
    grpo: tuple[str, ...] = ("--max-steps", "60", "--every", "20", "--samples", "1")


FULL = Size()
QUICK = Size(
    rule=8,
    drawn=40,
    problems=24,
    questions=8,
    samples=2,
    looks=4,
    signal=4,
    fit=("--sampling.rollouts", "4", "--checkpoints.samples", "1", "--checkpoints.every", "1"),
    sft=("--epochs", "1"),
    grpo=("--max-steps", "2", "--every", "2", "--samples", "1", "--prompts", "2"),
)


class Measurer:
    """Makes the cells of one base.

    Args:
        model: the base, a folder or a hub id.
        work: where fits and answers lie; a killed cell goes on from there.
        engine: what samples and answers.
        data_dir: local copies of benchmarks.
    """

    def __init__(
        self, model: str, work: Path, size: Size, engine: EngineName, data_dir: Path | None
    ) -> None:
        self._model, self._size, self._engine, self._data = model, size, engine, data_dir
        self.base = open_base(model)
        self._recipe = recipe_for(self.base)
        self._work = work / Path(model).name
        self._tasks = candidates(size.drawn, size.questions)
        self.names: list[str] = []  # of the tasks that are measured; empty: no rule yet

    def make(self, cell: Cell) -> dict[str, Any]:
        """The result of `cell`.

        Raises:
            RuntimeError, ValueError, subprocess.CalledProcessError: it failed.
        """
        made: dict[str, Any] = {
            plan.RULE: self.rule,
            plan.BASE: self.base_answers,
            plan.GREEDY: self.greedy,
            plan.FIT: self.fit,
            plan.GATED_GREEDY: self.gated_greedy,
            plan.ALWAYS: self.always,
            plan.ALONE: self.behind_the_gate,
            plan.GUIDED: self.guided,
            plan.SIGNAL: self.signal,
            plan.FOOTPRINT: self.look,
            plan.INTERVENE: self.look,
            plan.TRANSFER: self.transfer,
            plan.TEMPLATE: self.template,
            plan.OVERLAP: self.overlap,
            plan.SFT: self.sft,
            plan.PAPER: self.paper,
            plan.GRPO: self.grpo,
        }[cell.kind](cell)
        return made

    # ------------------------------------------------------------------------------- the base

    def rule(self, _: Cell) -> dict[str, Any]:
        """pass@1 of the base on training problems of every candidate, and what that admits."""
        asked = {
            task.name: load_problems(task.train, limit=self._size.rule, data_dir=self._data)
            for task in self._tasks.values()
            if task.train
        }
        found = {
            name: {
                "pass@1": one.pass_at_1.value,
                "stderr": one.stderr,
                "boxed": one.boxed_rate.value,
                "admitted": fits_rule(one.pass_at_1.value),
            }
            for name, one in self._ask(asked, None, samples=1).items()
        }
        return {"tasks": found, "measured": admitted(found)}

    def base_answers(self, _: Cell) -> dict[str, Any]:
        """The base at the temperature of its recipe, and the vote of its samples."""
        found = self._ask(self._asked, None, samples=self._size.samples, folder="base")
        votes = {}
        with Verifier() as verifier:
            for name, problems in self._asked.items():
                texts = answer_texts(self._answers / "base", name, problems)
                votes[name] = {"scores": vote_scores(texts, problems, verifier)}
        return figures("base", found) | {"vote": votes}

    def greedy(self, _: Cell) -> dict[str, Any]:
        """The base at temperature 0."""
        return figures("greedy", self._ask(self._asked, None, temperature=0))

    # ---------------------------------------------------------------------------- our adapters

    def fit(self, cell: Cell) -> dict[str, Any]:
        """An adapter behind its gate, and what it cost."""
        folder = self.adapter(cell)
        gate = gate_of(folder)
        told = json.loads(_told(folder).read_text())
        report, seconds = told["report"], told["seconds"]
        return {
            **figures("gated", self._ask(self._asked, Applied.behind(folder, gate))),
            "gate": {"tau": gate.tau, "rate": gate.rate, "temperature": gate.temperature},
            "cost": {
                "tokens": report["tokens"]["rollouts"],
                "heldout_tokens": report["tokens"]["heldout"],
                "steps": report["steps"],
                "seconds": round(sum(seconds.values()), 1),
            },
            "warnings": report["warnings"],
        }

    def gated_greedy(self, cell: Cell) -> dict[str, Any]:
        """The method's adapter behind its gate, at temperature 0."""
        folder = self.adapter(method_of(cell))
        applied = Applied.behind(folder, gate_of(folder))
        return figures("gated greedy", self._ask(self._asked, applied, temperature=0))

    def always(self, cell: Cell) -> dict[str, Any]:
        """The method's adapter at every step."""
        return figures("always", self._ask(self._asked, Applied(self.adapter(method_of(cell)))))

    def behind_the_gate(self, cell: Cell) -> dict[str, Any]:
        """The base behind the method's gate, without an adapter: what its temperature does alone.

        Without a temperature this is the base, answer by answer anew.
        """
        return figures("alone", self._ask(self._asked, self._alone(cell)))

    def guided(self, cell: Cell) -> dict[str, Any]:
        """The base, guided away from a negative prompt where the method's gate opens."""
        tokenizer = read_tokenizer(self.base.folder)
        prompt = tuple(tokenizer(NEGATIVE, add_special_tokens=False)["input_ids"])
        applied = self._alone(cell)._replace(guidance=Guidance(GUIDANCE_SCALE, prompt))
        return figures("guided", self._ask(self._asked, applied))

    def _alone(self, cell: Cell) -> Applied:
        """The method's gate with an adapter that changes nothing."""
        folder = self.adapter(method_of(cell))
        zeros = folder.parent / f"{folder.name}-zeros"
        if not zeros.exists():
            publish_zeros(zeros, folder, "zeros", self.base)
        return Applied.behind(zeros, gate_of(folder))

    def transfer(self, cell: Cell) -> dict[str, Any]:
        """An adapter fitted on one task alone, on all of them."""
        task = self._tasks[cell.variant]
        folder = self._fit(cell, str(task.train), self._work / "fits" / f"only-{task.name}")
        applied = Applied.behind(folder, gate_of(folder))
        return figures("gated", self._ask(self._asked, applied))

    def template(self, cell: Cell) -> dict[str, Any]:
        """Base and method with another instruction than the adapter was fitted with."""
        folder = self.adapter(method_of(cell))
        prompt = self._recipe.prompt.model_copy(update={"instruction": OTHER_INSTRUCTION})
        renderer = PromptRenderer.load(self.base.folder, prompt)
        applied = Applied.behind(folder, gate_of(folder))
        return {
            **figures("base", self._ask(self._asked, None, renderer=renderer)),
            **figures("gated", self._ask(self._asked, applied, renderer=renderer)),
            "instruction": OTHER_INSTRUCTION,
        }

    def paper(self, cell: Cell) -> dict[str, Any]:
        """The paper's own fit, at every position, served at every step."""
        folder = self.adapter(replace(cell, flags=("--mode", "always")))
        return figures("always", self._ask(self._asked, Applied(folder)))

    # ----------------------------------------------------------------------------- other methods

    def sft(self, cell: Cell) -> dict[str, Any]:
        """Plain supervised fine-tuning on the references, at every step."""
        folder, train = self._folder(cell), self._training_problems()
        self._run(
            *("research.real.sft", "--model", self._model, "--problems", str(train)),
            *("--seed", str(cell.seed), "--output", str(folder), *self._size.sft),
        )
        return figures("always", self._ask(self._asked, Applied(folder)))

    def grpo(self, cell: Cell) -> dict[str, Any]:
        """GRPO by TRL with a LoRA of the method's shape, at every step."""
        folder, run = self._folder(cell), self._work / "grpo" / str(cell.seed)
        if not folder.exists():
            self._run(
                *("research.paper.grpo", "--model", self._model, "--seed", str(cell.seed)),
                *("--problems", str(self._training_problems())),
                *("--heldout", str(self._heldout_problems()), "--run-dir", str(run)),
                *("--lora-rank", str(self._recipe.lora.rank), "--output", str(folder)),
                *("--max-tokens", str(self._size.max_tokens), "--engine", self._engine),
                *self._size.grpo,
            )
        report = json.loads((run / "report.json").read_text())
        cost = {name: report[name] for name in ("tokens", "heldout_tokens", "steps", "seconds")}
        found = figures("always", self._ask(self._asked, Applied(folder)))
        return found | {"cost": cost, "stopped_rising": report["stopped_rising"]}

    # ------------------------------------------------------------------------ what explains them

    def look(self, cell: Cell) -> dict[str, Any]:
        """Footprint or interventions of the method's adapter on one task."""
        task = cell.variant.partition("/")[2]
        output = self._work / "looks" / cell.kind / task
        asked = output / "problems.jsonl"
        write_problems(asked, self._asked[task][: self._size.looks])
        self._run(
            *(f"research.paper.{cell.kind}", "--model", self._model, "--engine", self._engine),
            *("--tuned", str(self.adapter(method_of(cell))), "--problems", str(asked)),
            *("--max-tokens", str(self._size.max_tokens), "--top-p", "1"),
            *("--seed", str(cell.seed), "--output", str(output)),
        )
        found: dict[str, Any] = json.loads((output / "report.json").read_text())
        return found

    def signal(self, cell: Cell) -> dict[str, Any]:
        """Where decision points lie, and the gradient that each way of training has."""
        fit = method_of(cell)
        self.adapter(fit)  # so that the rollouts are there
        arguments = self._fit_arguments(fit, str(self._training_problems()), self._work / "fit")
        return signal(FitConfig.load(arguments), self._size.signal)

    def overlap(self, _: Cell) -> dict[str, Any]:
        """Test problems that share 13 words in a row with a training problem, by task."""
        train = load_problems(str(self._training_problems()))
        return {
            "shared": {
                name: len(overlaps(problems, train)) for name, problems in self._asked.items()
            },
            "of": {name: len(problems) for name, problems in self._asked.items()},
        }

    # --------------------------------------------------------------------------- what they share

    @cached_property
    def _asked(self) -> dict[str, list[Problem]]:
        """Task -> its test problems."""
        return {
            name: problems_to_test(self._tasks[name], self._size.questions, self._data)
            for name in self.names
        }

    @property
    def _answers(self) -> Path:
        return self._work / "answers"

    def _ask(
        self,
        asked: dict[str, list[Problem]],
        applied: Applied | None,
        *,
        samples: int = 1,
        temperature: float | None = None,
        renderer: PromptRenderer | None = None,
        folder: str = "",
    ) -> dict[str, Result]:
        """Task -> answers to its problems; those that are there are not asked again."""
        renderer = renderer or PromptRenderer.load(self.base.folder, self._recipe.prompt)
        warm = self._recipe.sampling.temperature if temperature is None else temperature
        options = SamplingOptions(samples, warm, 1.0, self._size.max_tokens)
        longest = max(len(renderer.token_ids(p.problem)) for ps in asked.values() for p in ps)
        rank = AdapterVersion.read(applied.adapter, applied.adapter.name).rank if applied else None
        with (
            Verifier() as verifier,
            open_generator(
                str(self.base.folder),
                engine=self._engine,
                max_rank=rank,
                gated=applied is not None and applied.tau is not None,
                max_model_len=longest + options.max_tokens,
            ) as generator,
        ):
            return {
                name: evaluate_generator(
                    generator,
                    renderer,
                    problems,
                    options,
                    verifier,
                    applied,
                    source=name,
                    label=name,
                    output=self._answers / folder,
                    identity=self.base.fingerprint,
                )
                for name, problems in asked.items()
            }

    def adapter(self, cell: Cell) -> Path:
        """The adapter of a fit; nothing is done again."""
        return self._fit(cell, str(self._training_problems()), self._work / "fit")

    def _fit(self, cell: Cell, problems: str, run: Path) -> Path:
        folder = self._folder(cell)
        if not _told(folder).exists():
            self._run("training.fit", *self._fit_arguments(cell, problems, run))
            files = {name: json.loads((run / f"{name}.json").read_text()) for name in TOLD}
            write_json(_told(folder), files)  # the next fit writes over them
        return folder

    def _fit_arguments(self, cell: Cell, problems: str, run: Path) -> list[str]:
        return [
            *("--model", self._model, "--problems", problems),
            *("--run-dir", str(run), "--output", str(self._folder(cell))),
            *("--seed", "0", "--training-seed", str(cell.seed), "--base-cache.keep"),
            *("--sampling.max-tokens", str(self._size.max_tokens), "--engine", self._engine),
            *(("--data-dir", str(self._data)) if self._data else ()),
            *cell.flags,
            *self._size.fit,
        ]

    def _folder(self, cell: Cell) -> Path:
        """Where the adapter of a cell lies."""
        name = cell.id.partition("/")[2].replace("/", "-")
        return self._work / "adapters" / name

    def _training_problems(self) -> Path:
        """Problems of all tasks that have some to train on, in equal shares, as a file."""
        return self._problems_file("train", 0, self._size.problems)

    def _heldout_problems(self) -> Path:
        """Others, by which GRPO chooses its checkpoint."""
        return self._problems_file("heldout", self._size.problems, self._size.problems // 5)

    def _problems_file(self, name: str, start: int, count: int) -> Path:
        path = self._work / f"{name}-{digest(self.names)}.jsonl"
        if not path.exists():
            sources = [self._tasks[one].train for one in self.names]
            mixture = "+".join(one for one in sources if one)
            problems = load_problems(mixture, limit=start + count, data_dir=self._data)
            write_problems(path, problems[start:])
        return path

    @staticmethod
    def _run(*arguments: str) -> None:
        """Run `python -m arguments...`; it shows its own progress."""
        subprocess.run([sys.executable, "-m", *arguments], check=True)


def method_of(cell: Cell) -> Cell:
    """The fit of the method that `cell` looks at."""
    return Cell(cell.base, plan.FIT, plan.METHOD, cell.seed)


def figures(row: str, results: dict[str, Result]) -> dict[str, Any]:
    """What a cell keeps of answers: scores by problem, and of each answer if it is right, whether
    it has a final answer, and its length."""
    return {
        row: {
            name: {
                "scores": [_or_none(score) for score in one.scores],
                "tokens": int(one.tokens.sum()),
                "gated": int(one.gated.sum()),
                "boxed": round(one.boxed_rate.value, 4),
                "truncated": round(one.truncated_rate.value, 4),
            }
            for name, one in results.items()
        },
        **{
            f"{row}/{what}": {
                name: {"scores": [_or_none(value) for value in np.ravel(getattr(one, what))]}
                for name, one in results.items()
            }
            for what in ("correct", "boxed", "tokens")
        },
    }


def _or_none(value: Any) -> float | None:
    """None for what the grader could not tell."""
    return None if np.isnan(value) else round(float(value), 4)


def _told(adapter: Path) -> Path:
    """What the fit of `adapter` told of itself."""
    return adapter.with_name(f"{adapter.name}.json")


def gate_of(adapter: Path) -> Gate:
    """The gate that it is served behind."""
    gate = Manifest.read(adapter).gate
    assert gate is not None  # a fit always calibrates one
    return gate


def digest(names: Sequence[str]) -> str:
    """A short one of the tasks' names: other tasks make other files."""
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
