"""How each kind of cell is made. What is large stays in the work folder; a cell is its figures.

Adapters are fitted task by task. All fits of a task share one set of rollouts and the base's caches
over them: `--seed 0 --training-seed N --base-cache.keep`. What differs between seeds is training
alone. The last step is kept: fits on so few problems have none to spare for choosing one.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adapters.adapter import AdapterVersion
from adapters.average import average
from adapters.files import write_json
from adapters.prompt import PromptRenderer, read_tokenizer
from adapters.recipe import recipe_for
from research.fits import cost_of, gate_of, run_module
from research.paper.cells import Cell
from research.real import plan, ways
from research.real.signal import signal
from research.real.tasks import (
    admitted,
    candidates,
    enough,
    fits_rule,
    problems_to_test,
    trained_on,
)
from research.real.vote import answer_texts, vote_scores
from research.real.ways import Way
from training.evaluation import Evaluation, Result, evaluate_generator
from training.fit_config import FitConfig
from training.generation import (
    Applied,
    EngineName,
    Generator,
    Guidance,
    SamplingOptions,
    context_of,
    longest_sequence,
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
FEW_SHOT = Path(__file__).with_name("few-shot.yaml")
ROOM = 256  # an engine's longest sequence is a multiple of it
# Of the ways with another instruction than the recipe's.
OTHER_INSTRUCTION = "Solve the problem. End with the final answer in \\boxed{}."


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    rule: int = 40  # training problems that the rule looks at
    drawn: int = 120  # training problems of each generator; none of them is tested on
    problems: int = 56  # of one task, that a fit is given; it holds 8 of them out
    questions: int = 300  # test problems of each task
    samples: int = 4  # the base's answers to each, of which self-consistency votes
    looks: int = 40  # test problems of each task, for the footprint
    interventions: int = 100  # the same for the interventions
    signal: int = 48  # rollouts
    max_tokens: int = 512
    rollout_tokens: int = 256  # what is longer counts as wrong: half the cost, and short answers
    # Further flags of training.fit: one checkpoint, one gate, and a few answers to look at.
    fit: tuple[str, ...] = (
        *("--checkpoints.every", "1", "--checkpoints.decoded", "1", "--checkpoints.problems", "8"),
        *("--checkpoints.rollouts", "2", "--checkpoints.samples", "1", "--gate.others", "[]"),
    )
    sft: tuple[str, ...] = ()
    # Ten times as many rollouts as the method's fits have, 48 x 8.
    grpo: tuple[str, ...] = (
        *("--max-steps", "60", "--prompts", "8", "--samples", "4"),
        *("--every", "5", "--patience", "8"),  # on two cores a step takes minutes: lose few
        *("--accumulation", "16"),  # four answers in each pass: all at once take some 80 GB
    )


FULL = Size()
QUICK = Size(
    rule=8,
    drawn=40,
    problems=24,
    questions=8,
    samples=2,
    looks=4,
    interventions=4,
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
        template = read_tokenizer(self.base.folder).chat_template
        self._family = "" if template else str(FEW_SHOT)  # "": by the base's name
        self._recipe = recipe_for(self.base, self._family)
        self._work = work / Path(model).name
        self._answers = self._work / "answers"
        self._tasks = candidates(size.drawn, size.questions)
        every = (*ways.WAYS, *map(ways.transferred, self._tasks))
        self._ways = {way.name: way for way in every}
        self.names: list[str] = []  # of the tasks that are measured; empty: no rule yet
        self._exit = ExitStack()
        self._open: Generator | None = None
        self._size_of = (0, 0)  # rank and length that the open engine has room for

    def make(self, cell: Cell) -> dict[str, Any]:
        """The result of `cell`.

        Raises:
            RuntimeError, ValueError, subprocess.CalledProcessError: it failed.
        """
        made: dict[str, Any] = {
            plan.RULE: self.rule,
            plan.TRAIN: self.train,
            plan.ANSWERS: self.answers,
            plan.SIGNAL: self.signal,
            plan.FOOTPRINT: self.look,
            plan.INTERVENE: self.look,
            plan.OVERLAP: self.overlap,
        }[cell.kind](cell)
        return made

    # ------------------------------------------------------------------------------ the answers

    def rule(self, _: Cell) -> dict[str, Any]:
        """pass@1 of the base on training problems of the candidates, and what that admits.

        They are asked in their order; of Reasoning Gym's tasks until enough are admitted.
        """
        found: dict[str, dict[str, Any]] = {}
        for task in self._tasks.values():
            if task.train is None or (not task.always and enough(found)):
                continue
            problems = load_problems(task.train, limit=self._size.rule, data_dir=self._data)
            one = self._ask(problems, None, task.name)
            found[task.name] = {
                "pass@1": one.pass_at_1.value,
                "stderr": one.stderr,
                "boxed": one.boxed_rate.value,
                "admitted": fits_rule(one.pass_at_1.value),
            }
        return {"tasks": found, "measured": admitted(found)}

    def answers(self, cell: Cell) -> dict[str, Any]:
        """The answers to the test problems of one task, given in one way."""
        name, task = _parts(cell)
        way = self._ways[name]
        applied = self._applied(way, task, cell) if way.trained else None
        if way.runs == "alone" and applied and applied.temperature == 1:
            name, applied = ways.BASE.name, None  # the gate alone changes no token then
        problems, label = self._asked[task], f"{name}-{task}"
        result = self._ask(
            problems,
            applied,
            label,
            samples=self._size.samples if way.vote else 1,
            temperature=0 if way.greedy else None,
            instruction=OTHER_INSTRUCTION if way.other_instruction else None,
        )
        if not way.vote:
            return figures(task, result)
        with Verifier() as verifier:
            votes = vote_scores(answer_texts(self._answers, label, problems), problems, verifier)
        return {
            plan.ANSWERS: {task: {"scores": [_or_none(vote) for vote in votes]}},
            "samples": figures(task, result)[plan.ANSWERS],
        }

    def _applied(self, way: Way, task: str, cell: Cell) -> Applied:
        """What runs beside the base, and where."""
        if way.mean:
            folder = self._mean(task, cell)
        else:
            folder = self.adapter(plan.adapter_of(cell.base, way, task, cell.seed or 0))
        if way.runs == "always":
            return Applied(folder)
        gate = gate_of(folder)
        if way.runs == "gated":
            return Applied.behind(folder, gate, rate=way.gate_rate)
        zeros = folder.parent / f"{folder.name}-zeros"
        if not zeros.exists():
            publish_zeros(zeros, folder, "zeros", self.base)
        applied = Applied.behind(zeros, gate)
        if way.runs == "alone":
            return applied
        tokenizer = read_tokenizer(self.base.folder)
        prompt = tuple(tokenizer(NEGATIVE, add_special_tokens=False)["input_ids"])
        return applied._replace(guidance=Guidance(GUIDANCE_SCALE, prompt))

    def _mean(self, task: str, cell: Cell) -> Path:
        """The folder of the mean of the method's adapters of the seeds in the cell's flags."""
        name = f"mean-{trained_on(task)}-seeds{'-'.join(cell.flags)}"
        folder = self._work / "adapters" / name
        if not folder.exists():
            fits = [plan.train(cell.base, ways.METHOD, task, int(seed)) for seed in cell.flags]
            average([AdapterVersion.read(self.adapter(fit)) for fit in fits], folder, name)
        return folder

    # ----------------------------------------------------------------------------- the adapters

    def train(self, cell: Cell) -> dict[str, Any]:
        """Train an adapter, and say what it cost."""
        folder = self.adapter(cell)
        told = json.loads(_told(folder).read_text())
        trained, _ = _parts(cell)
        if trained == ways.SFT:
            return {"cost": {"tokens": 0, "seconds": told["seconds"]}}
        if trained == ways.GRPO:
            names = ("tokens", "heldout_tokens", "steps", "seconds")
            return {
                "cost": {name: told[name] for name in names},
                "stopped_rising": told["stopped_rising"],
            }
        report = told["report"]
        found = {"cost": cost_of(report, told["seconds"]), "warnings": report["warnings"]}
        if trained == ways.PAPER:
            return found
        gate = gate_of(folder)
        return found | {"gate": {"tau": gate.tau, "rate": gate.rate, "at": gate.temperature}}

    def adapter(self, cell: Cell) -> Path:
        """The folder of what `cell` trains; nothing is done again."""
        trained, task = _parts(cell)
        folder = self._work / "adapters" / f"{trained}-{task}-seed{cell.seed}"
        if not _told(folder).exists():
            self.close()  # training has an engine of its own
            trainer = {ways.SFT: self._sft, ways.GRPO: self._grpo}.get(trained, self._fit)
            write_json(_told(folder), trainer(cell, folder))
        return folder

    def _fit(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """Fit, and return what the fit told of itself: the next one writes over it."""
        run = self._fit_run(cell)
        run_module("training.fit", *self._fit_arguments(cell, folder))
        return {name: json.loads((run / f"{name}.json").read_text()) for name in TOLD}

    def _fit_run(self, cell: Cell) -> Path:
        return self._work / "fits" / _parts(cell)[1]

    def _fit_arguments(self, cell: Cell, folder: Path) -> list[str]:
        problems = self._training_problems(_parts(cell)[1])
        return [
            *("--model", self._model, "--family", self._family, "--problems", str(problems)),
            *("--run-dir", str(self._fit_run(cell)), "--output", str(folder)),
            *("--seed", "0", "--training-seed", str(cell.seed), "--base-cache.keep"),
            *("--sampling.max-tokens", str(self._size.rollout_tokens), "--engine", self._engine),
            *cell.flags,
            *self._size.fit,
        ]

    def _sft(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """Plain supervised fine-tuning on the references."""
        start = time.monotonic()
        run_module(
            *("research.real.sft", "--model", self._model, "--family", self._family),
            *("--output", str(folder), "--problems", str(self._training_problems(_parts(cell)[1]))),
            *("--learning-rate", str(self._recipe.optimizer.learning_rate)),
            *("--seed", str(cell.seed), *self._size.sft),
        )
        return {"seconds": round(time.monotonic() - start, 1)}

    def _grpo(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """GRPO by TRL with a LoRA of the method's shape."""
        _, task = _parts(cell)
        run = self._work / "grpo" / task / str(cell.seed)
        run_module(
            *("research.paper.grpo", "--model", self._model, "--family", self._family),
            *("--seed", str(cell.seed), "--problems", str(self._training_problems(task))),
            *("--heldout", str(self._heldout_problems(task)), "--run-dir", str(run)),
            *("--lora-rank", str(self._recipe.lora.rank), "--output", str(folder)),
            *("--learning-rate", str(self._recipe.optimizer.learning_rate)),
            *("--max-tokens", str(self._size.rollout_tokens), "--engine", self._engine),
            *self._size.grpo,
        )
        report: dict[str, Any] = json.loads((run / "report.json").read_text())
        return report

    # ------------------------------------------------------------------------ what explains them

    def look(self, cell: Cell) -> dict[str, Any]:
        """Footprint or interventions of the method's adapter on one task."""
        task = cell.variant
        method = self.adapter(method_of(cell))
        output = self._work / "looks" / cell.kind / task
        asked = output / "problems.jsonl"
        size = self._size
        count = size.looks if cell.kind == plan.FOOTPRINT else size.interventions
        write_problems(asked, self._asked[task][:count])
        self.close()
        run_module(
            *(f"research.paper.{cell.kind}", "--model", self._model, "--family", self._family),
            *("--engine", self._engine),
            *("--tuned", str(method), "--problems", str(asked)),
            *("--max-tokens", str(self._size.max_tokens), "--top-p", "1"),
            *("--seed", str(cell.seed), "--output", str(output)),
        )
        found: dict[str, Any] = json.loads((output / "report.json").read_text())
        return found

    def signal(self, cell: Cell) -> dict[str, Any]:
        """Where decision points lie, and the gradient that each way of training has."""
        fit = method_of(cell)
        folder = self.adapter(fit)  # so that the rollouts are there
        self.close()
        return signal(FitConfig.load(self._fit_arguments(fit, folder)), self._size.signal)

    def overlap(self, _: Cell) -> dict[str, Any]:
        """Test problems that share 13 words in a row with a training problem, by task."""
        return {
            "shared": {
                name: len(overlaps(problems, load_problems(str(self._training_problems(name)))))
                for name, problems in self._asked.items()
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

    def _ask(
        self,
        problems: list[Problem],
        applied: Applied | None,
        label: str,
        *,
        samples: int = 1,
        temperature: float | None = None,
        instruction: str | None = None,
    ) -> Result:
        """Answers to the problems; those that are there are not asked again."""
        prompt = self._recipe.prompt
        if instruction is not None:
            prompt = prompt.model_copy(update={"instruction": instruction})
        renderer = PromptRenderer.load(self.base.folder, prompt)
        warm = self._recipe.sampling.temperature if temperature is None else temperature
        options = SamplingOptions(samples, warm, 1.0, self._size.max_tokens)
        longest = max(len(renderer.token_ids(one.problem)) for one in problems)
        with Verifier() as verifier:
            evaluation = Evaluation(
                *(problems, renderer, options, verifier),
                *(label, self._answers, self.base.fingerprint),
            )
            length = longest_sequence(str(self.base.folder), longest, options.max_tokens)
            generator = self._generator(applied, length)
            return evaluate_generator(generator, evaluation, applied, label)

    def _generator(self, applied: Applied | None, length: int) -> Generator:
        """The engine that all answers come from; it is opened anew where it is too small."""
        rank = self._recipe.lora.rank
        if applied:
            rank = max(rank, AdapterVersion.read(applied.adapter, applied.adapter.name).rank)
        if self._open and rank <= self._size_of[0] and length <= self._size_of[1]:
            return self._open
        self.close()
        length = -(-length // ROOM) * ROOM
        self._size_of = (rank, min(length, context_of(str(self.base.folder)) or length))
        self._open = self._exit.enter_context(
            open_generator(
                str(self.base.folder),
                engine=self._engine,
                max_rank=rank,
                gated=True,
                max_model_len=self._size_of[1],
            )
        )
        return self._open

    def close(self) -> None:
        """Give the engine's memory back."""
        self._exit.close()
        self._open = None

    def _training_problems(self, task: str) -> Path:
        """What the fits for a task are given, as a file."""
        return self._problems_file("train", trained_on(task), 0, self._size.problems)

    def _heldout_problems(self, task: str) -> Path:
        """Others, by which GRPO chooses its checkpoint: enough for errors of some .07."""
        count = self._size.problems
        return self._problems_file("heldout", trained_on(task), count, count // 2)

    def _problems_file(self, name: str, task: str, start: int, count: int) -> Path:
        path = self._work / "problems" / f"{name}-{task}.jsonl"
        if not path.exists():
            source = str(self._tasks[task].train)
            problems = load_problems(source, limit=start + count, data_dir=self._data)
            write_problems(path, problems[start:])
        return path


def method_of(cell: Cell) -> Cell:
    """The fit of the method, for its task, that `cell` looks at."""
    return plan.train(cell.base, ways.METHOD, cell.variant, cell.seed or 0)


def _parts(cell: Cell) -> tuple[str, str]:
    """What a cell trains, or how it answers, and the task."""
    name, _, task = cell.variant.partition("/")
    return name, task


def figures(task: str, one: Result) -> dict[str, Any]:
    """What a cell keeps of answers: scores by problem, and of each answer if it is right, whether
    it has a final answer, and its length."""
    return {
        plan.ANSWERS: {
            task: {
                "scores": [_or_none(score) for score in one.scores],
                "tokens": int(one.tokens.sum()),
                "gated": int(one.gated.sum()),
                "boxed": round(one.boxed_rate.value, 4),
                "truncated": round(one.truncated_rate.value, 4),
            }
        },
        **{
            what: {task: {"scores": [_or_none(value) for value in np.ravel(getattr(one, what))]}}
            for what in ("correct", "boxed", "tokens")
        },
    }


def _or_none(value: Any) -> float | None:
    """None for what the grader could not tell."""
    return None if np.isnan(value) else round(float(value), 4)


def _told(adapter: Path) -> Path:
    """What the fit of `adapter` told of itself."""
    return adapter.with_name(f"{adapter.name}.json")
