"""Does it pay to search where right rollouts are rare, or to sample again from what was trained?

    python -m experiments.search                        (about an hour on one core)
    python -m experiments.search --seeds 0,1 --questions 200

Each plan spends its rollouts another way: on more problems with fewer rollouts each, on further
rollouts of some problems, or in rounds, where each later one samples its share of the problems from
the adapter so far, behind its gate, and goes on from it. All adapters are trained by the family's
recipe and answer the same held-out problems, gated; the last checkpoint is taken, so that nothing
is chosen by them. A killed run goes on with the fit it was at.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from pydantic import Field

from adapters.base import BaseModel
from adapters.files import write_json
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, recipe_for
from benchmarks.report import print_table
from experiments.gate import make_problems
from training.config import Config
from training.evaluate import evaluate_generator
from training.generate import Applied, Generator, SamplingOptions, derive_seed, open_generator
from training.machine import machine
from training.metrics import over_seeds
from training.model import load_model
from training.problems import Problem, load_problems
from training.results import Result
from training.run import Stage, whole_checkpoints
from training.score import batches, sequence_entropies
from training.select import choose_gates, select
from training.train import (
    ContrastiveTrainer,
    Rollouts,
    TrainingRow,
    collate,
    predicting_states,
    train,
    training_arguments,
)
from training.verify import Verifier

TOKEN_BUDGET = 16384  # of a batch that is scored


class Plan(NamedTuple):
    """How rollouts are spent."""

    label: str
    problems: int
    rollouts: int  # of each
    rounds: int = 1
    more: int = 0  # further rollouts, in all
    between: tuple[float, float] = (0.0, 1.0)  # shared by the problems with such a pass rate


PLANS = (
    Plan("64 problems x 12", 64, 12),
    Plan("128 x 6", 128, 6),
    Plan("192 x 4", 192, 4),
    Plan("96 x 6, a quarter more where right ones are rare (up to .4)", 96, 6, 1, 192, (0.01, 0.4)),
    Plan("96 x 6, a quarter more where both are common (.2 to .8)", 96, 6, 1, 192, (0.2, 0.8)),
    Plan("128 x 12", 128, 12),
    Plan("128 x 12 in two rounds", 128, 12, 2),
    Plan("128 x 12 in four rounds", 128, 12, 4),
)


class SearchConfig(Config):
    """Settings of the experiment."""

    program: ClassVar[str] = "python -m experiments.search"

    model: Path = Field(Path("models/tiny-qwen2"), description="A miniature base.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Of fits and their problems.")
    questions: int = Field(500, ge=10, description="Held-out problems.")
    samples: int = Field(1, ge=1, description="Answers per problem.")
    output: Path = Path("runs/experiments/search")


class Asked(NamedTuple):
    """Rollouts, one after another."""

    problems: list[int]  # indices
    prompts: list[list[int]]
    tokens: list[list[int]]
    rewards: npt.NDArray[np.float64]


class Fit(NamedTuple):
    """What a plan came to."""

    adapter: Path
    tau: float
    tokens: int


class Search:
    """Follows plans on one base, with the problems of one seed."""

    def __init__(
        self,
        base: BaseModel,
        problems: Sequence[Problem],
        generator: Generator,
        verifier: Verifier,
        seed: int,
    ) -> None:
        self.recipe: Recipe = recipe_for(base.name, base.model_type)
        self.renderer = PromptRenderer.load(base.folder, self.recipe.prompt)
        self.folder = base.folder
        self.problems, self.generator, self.verifier = problems, generator, verifier
        self.seed = seed

    def fit(self, plan: Plan, folder: Path) -> Fit:
        """Sample and train, round by round; what is whole in `folder` is not done again."""
        done = folder / "fit.json"
        if done.exists():
            found = json.loads(done.read_text())
            return Fit(folder / found["adapter"], found["tau"], found["tokens"])
        adapter: Path | None = None
        tau: float | None = None
        spent = 0
        size = plan.problems // plan.rounds
        for number in range(plan.rounds):
            indices = range(number * size, (number + 1) * size)
            applied = Applied(adapter, tau) if adapter else None
            asked = self.ask(indices, plan.rollouts, applied)
            if plan.more:
                asked = _together(asked, self.ask_more(asked, plan))
            entropies = self.entropies(asked)
            if tau is None:
                tau = choose_gates(entropies, self.recipe.gate)[0].tau
            rows = self.rows(asked, entropies, tau)
            spent += sum(map(len, asked.tokens))
            adapter = self.train(rows, adapter, folder / f"round{number}")
        assert adapter is not None and tau is not None  # a plan has a round
        where = str(adapter.relative_to(folder))
        write_json(done, {"adapter": where, "tau": tau, "tokens": spent})
        return Fit(adapter, tau, spent)

    def ask(
        self, indices: Sequence[int], each: int, applied: Applied | None = None, draw: str = ""
    ) -> Asked:
        """`each` rollouts of the problems at `indices`, of the base or of an adapter."""
        sampling = self.recipe.sampling
        temperature = sampling.rollout_temperature or sampling.temperature
        options = SamplingOptions(each, temperature, sampling.top_p, sampling.max_tokens)
        prompts = [self.renderer.token_ids(self.problems[index].problem) for index in indices]
        seeds = [derive_seed(self.seed, draw, self.problems[index].id) for index in indices]
        found = dict(self.generator.stream(prompts, options, applied, seeds))
        flat = [(place, one) for place in range(len(prompts)) for one in found[place]]
        answers = [self.problems[indices[place]].answer for place, _ in flat]
        verdicts = self.verifier.check([one.text for _, one in flat], answers)
        return Asked(
            [indices[place] for place, _ in flat],
            [prompts[place] for place, _ in flat],
            [list(one.token_ids) for _, one in flat],
            np.array([float(verdict.correct) for verdict in verdicts]),
        )

    def ask_more(self, asked: Asked, plan: Plan) -> Asked:
        """Further rollouts of the base on the problems whose pass rate lies in the plan's range."""
        low, high = plan.between
        of = np.array(asked.problems)
        rates = {index: asked.rewards[of == index].mean() for index in sorted(set(asked.problems))}
        wanted = [index for index, rate in rates.items() if low <= rate <= high]
        return self.ask(wanted, max(2, round(plan.more / len(wanted))), draw="more")

    def entropies(self, asked: Asked) -> list[npt.NDArray[Any]]:
        """The base's, at every token of every rollout."""
        model = load_model(str(self.folder))
        found: dict[int, npt.NDArray[Any]] = {}
        lengths = [len(p) + len(t) for p, t in zip(asked.prompts, asked.tokens, strict=True)]
        for batch in batches(lengths, TOKEN_BUDGET):
            each = sequence_entropies(
                model, [asked.prompts[row] for row in batch], [asked.tokens[row] for row in batch]
            )
            found |= zip(batch, each, strict=True)
        return [found[row] for row in range(len(lengths))]

    def rows(
        self, asked: Asked, entropies: Sequence[npt.NDArray[Any]], tau: float
    ) -> list[TrainingRow]:
        """What the recipe selects of them."""
        examples = select(
            *(asked.problems, asked.rewards, asked.tokens, entropies, tau),
            *(self.recipe.selection, self.seed),
        )
        return [
            TrainingRow(
                prompt_ids=asked.prompts[one.row],
                token_ids=asked.tokens[one.row],
                advantages=one.advantages.tolist(),
                decisions=one.decisions.tolist(),
            )
            for one in examples
        ]

    def train(self, rows: list[TrainingRow], before: Path | None, folder: Path) -> Path:
        """The first round as `training.fit` does, a later one from the adapter `before`."""
        recipe, seed = self.recipe, self.seed

        def load_base() -> Any:
            return load_model(str(self.folder))

        if before is None:
            every = recipe.optimizer.epochs
            return train(
                *(Stage.first(folder, "training", {}), load_base, rows, recipe.lora),
                *(recipe.objective, recipe.optimizer, every, seed),
            )[-1]
        trainer = LaterRound(
            old=PeftModel.from_pretrained(load_base(), before).eval(),
            model=PeftModel.from_pretrained(load_base(), before, is_trainable=True),
            args=training_arguments(
                folder, len(rows), recipe.optimizer, recipe.optimizer.epochs, seed
            ),
            train_dataset=Rollouts(rows, strongest_first=False),
            data_collator=collate,
            objective=recipe.objective,
            in_order=False,
        )
        trainer.train()
        return whole_checkpoints(folder)[-1]


class LaterRound(ContrastiveTrainer):
    """Ratios at decision points are to the adapter that sampled, the rest is held to the base."""

    def __init__(self, *, old: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.old = old

    @torch.no_grad()
    def held_against(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[N, d] states: of the adapter before at decision points, of the base elsewhere."""
        base = super().held_against(model, inputs)
        return torch.where(inputs["decision"][:, None], predicting_states(self.old, inputs), base)


def _together(one: Asked, other: Asked) -> Asked:
    return Asked(
        one.problems + other.problems,
        one.prompts + other.prompts,
        one.tokens + other.tokens,
        np.concatenate([one.rewards, other.rewards]),
    )


def measure(config: SearchConfig) -> tuple[Result, dict[Plan, list[tuple[Fit, Result]]]]:
    """The base on the held-out problems, and each plan's fits with theirs, one a seed."""
    base = BaseModel.open(str(config.model))
    recipe = recipe_for(base.name, base.model_type)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    questions = load_problems(
        str(make_problems(config.output / "heldout.jsonl", 1, config.questions, "heldout"))
    )
    sampling = recipe.sampling
    options = SamplingOptions(
        config.samples, sampling.temperature, sampling.top_p, sampling.max_tokens
    )
    most = max(plan.problems for plan in PLANS)
    found: dict[Plan, list[tuple[Fit, Result]]] = {plan: [] for plan in PLANS}
    with (
        Verifier() as verifier,
        open_generator(str(base.folder), engine="transformers") as generator,
    ):

        def answers(label: str, applied: Applied | None = None) -> Result:
            return evaluate_generator(
                generator,
                renderer,
                questions,
                options,
                verifier,
                applied,
                label=label,
                output=config.output / "answers",
                identity=base.fingerprint,
            )

        of_base = answers("base")
        for seed in config.seeds:
            folder = config.output / f"seed{seed}"
            # 10 and up: seeds 0 and 1 are the corpus' own, whose problems the base has seen.
            path = make_problems(folder / "train.jsonl", 10 + seed, most, "train")
            search = Search(base, load_problems(str(path)), generator, verifier, seed)
            for number, plan in enumerate(PLANS):
                fit = search.fit(plan, folder / f"plan{number}")
                result = answers(f"plan{number} seed{seed}", Applied(fit.adapter, fit.tau))
                logging.info("%s, seed %d: %s", plan.label, seed, result.pass_at_1)
                found[plan].append((fit, result))
    return of_base, found


def report(base: Result, found: dict[Plan, list[tuple[Fit, Result]]]) -> dict[str, Any]:
    """Print the table; return its figures."""
    figures: dict[str, Any] = {"base": {"pass@1": base.pass_at_1.value, "stderr": base.stderr}}
    rows = [["base", "", str(base.pass_at_1), "", ""]]
    for plan, pairs in found.items():
        scores = np.array([result.scores for _, result in pairs])
        score, gain = over_seeds(scores), over_seeds(scores - base.scores)
        each = [result.against(base).value for _, result in pairs]
        tokens = float(np.mean([fit.tokens for fit, _ in pairs]))
        figures[plan.label] = {
            **{"tokens": tokens, "pass@1": score.value, "stderr": score.stderr},
            **{"gain": gain.value, "gain_stderr": gain.stderr, "each_seed": each},
        }
        of_each = " ".join(f"{value:+.3f}" for value in each)
        rows.append([plan.label, f"{tokens / 1000:.0f} k", str(score), gain.signed, of_each])
    print_table(["rollouts", "tokens", "pass@1", "gain", "of each seed"], rows)
    return figures


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    config = SearchConfig.load()
    figures = report(*measure(config))
    settings = config.model_dump(mode="json", exclude={"config"})
    path = config.output / "report.json"
    write_json(path, {"machine": machine(), "settings": settings, "plans": figures})
    print(f"\n{path}")


if __name__ == "__main__":
    main()
