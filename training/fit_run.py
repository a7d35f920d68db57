"""One fit under way: its stages, each with its place in the run folder.

Every method is one stage of `training/fit.py`; what it finds finished it does not do again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import AutoConfig

from adapters.base import BaseModel
from adapters.files import write_json
from adapters.gate import acting
from adapters.manifest import Gate
from adapters.prompt import PromptRenderer
from adapters.recipe import Lora
from training.base_cache import Budget, check_readable, is_readable
from training.choose import Candidate, Choice, best_estimated, choose_always, choose_gated
from training.decision_points import layer_windows
from training.estimate import WeightedScore
from training.evaluate import evaluate_generator
from training.fit_config import FitConfig
from training.generate import Applied, Generator, SamplingOptions, derive_seed, open_generator
from training.heldout import Answers, HeldoutScorer, Setting
from training.metrics import Estimate
from training.model import free_memory, load_model, open_base
from training.problems import Problem, load_problems, source_name, write_problems
from training.results import Result
from training.run import Stage, write_table
from training.sample import sample
from training.score import score
from training.select import Example, select
from training.train import load_adapter, peft_model, train
from training.trainers import TrainingRow
from training.verify import Verifier

logger = logging.getLogger("training.fit")


class Rollouts(NamedTuple):
    """Answers to some problems, sampled and graded, with the base's entropies."""

    stage: Stage
    table: pa.Table  # training.sample.SCHEMA
    rewards: np.ndarray  # [N] of 0 and 1
    boxed: np.ndarray  # [N] bool
    entropies: list[np.ndarray]  # N float32 arrays, nats

    def answers(self) -> Answers:
        """The same as lists."""
        return Answers(
            self.table["problem"].to_numpy(),
            self.table["prompt_ids"].to_pylist(),
            self.table["token_ids"].to_pylist(),
            self.rewards,
            self.entropies,
        )


class Drawn(NamedTuple):
    """Answers not graded yet."""

    stage: Stage
    problems: list[Problem]
    table: pa.Table


@dataclass
class FitRun:
    """The stages of one fit."""

    config: FitConfig
    base: BaseModel
    renderer: PromptRenderer
    problems: list[Problem]
    heldout: list[Problem]
    verifier: Verifier

    @classmethod
    @contextmanager
    def open(cls, config: FitConfig) -> Iterator[FitRun]:
        """The run of `config`; a verifier waits for as long as this is open."""
        base = open_base(config.model)
        if config.objective.positions == "decisions":
            shape = AutoConfig.from_pretrained(base.folder)
            check_readable(shape)
            layer_windows(shape)
        problems, heldout = split_problems(config)
        renderer = PromptRenderer.load(base.folder, config.prompt)
        config.save(config.run_dir / "fit.yaml")
        with Verifier() as verifier:
            yield cls(config, base, renderer, problems, heldout, verifier)

    def __post_init__(self) -> None:
        self.clock = Clock(self.config.run_dir / "clock.json")
        cache = self.config.base_cache
        self.budget = Budget.of_gib(cache.memory_gib, cache.disk_gib)
        # A model that cannot be gated reports no entropies; they are computed afterwards.
        self._can_gate = is_readable(AutoConfig.from_pretrained(self.base.folder))
        self._longest = max(
            len(self.renderer.token_ids(p.problem)) for p in self.problems + self.heldout
        )

    @property
    def shares(self) -> list[list[Problem]]:
        """The training problems of each round."""
        rounds = self.config.rounds
        return [self.problems[number::rounds] for number in range(rounds)]

    def generator(self, adapter: bool) -> AbstractContextManager[Generator]:
        """What samples: the base alone, or with an adapter too."""
        return open_generator(
            str(self.base.folder),
            engine=self.config.engine,
            max_rank=self.config.lora.rank if adapter else None,
            gated=self._can_gate,
            max_model_len=self._longest + self.config.sampling.max_tokens,
            seed=self.config.seed,
        )

    # ------------------------------------------------------------------ sample, verify, score

    def sample_base(self, problems: list[Problem]) -> tuple[Drawn, Drawn]:
        """Rollouts of the base on `problems` and on the held-out ones, from one engine.

        Held-out answers are drawn as they are served, but without top_p: nothing that an adapter
        may prefer is cut off.
        """
        config = self.config
        answers = config.sampling.model_copy(
            update={
                "rollouts": config.checkpoints.rollouts,
                "rollout_temperature": None,
                "top_p": 1.0,
            }
        )
        asked = [("rollouts", problems, config.sampling), ("heldout", self.heldout, answers)]
        drawn = []
        with self.generator(adapter=False) as generator:
            for name, them, sampling in asked:
                stage = Stage.first(
                    config.run_dir,
                    name,
                    {
                        "base": self.base.fingerprint,
                        "template": self.renderer.template,
                        **({"stop": self.renderer.stop} if self.renderer.stop else {}),
                        "problems": [p.model_dump() for p in them],
                        "sampling": sampling.model_dump(),
                        "seed": config.seed,
                        "engine": config.engine,
                    },
                )
                with self.clock("sample" if name == "rollouts" else "sample held-out", stage):
                    table = sample(stage, them, self.renderer, sampling, config.seed, generator)
                drawn.append(Drawn(stage, them, table))
        return drawn[0], drawn[1]

    def sample_adapter(
        self, before: Stage, number: int, problems: list[Problem], adapter: Path, gate: Gate
    ) -> Drawn:
        """Rollouts of the gated adapter, for round `number`."""
        stage = before.then("rollouts", {"problems": [p.model_dump() for p in problems]})
        applied = Applied.behind(adapter, gate)
        with self.clock(f"sample, round {number}", stage), self.generator(True) as generator:
            table = sample(
                stage,
                problems,
                self.renderer,
                self.config.sampling,
                self.config.seed,
                generator,
                applied,
            )
        return Drawn(stage, problems, table)

    def grade(self, drawn: Drawn, note: str = "") -> Rollouts:
        """Verify the answers and score their tokens with the base."""
        stage = drawn.stage.then("rewards", {})
        with self.clock(f"verify{note}", stage):
            grades = verify(stage, drawn.table, drawn.problems, self.verifier)
        rewards = grades["correct"].to_numpy().astype(np.float64)
        logger.info("pass@1 of the rollouts%s: %.3f", note, rewards.mean())
        stage = stage.then("entropies", {})
        with self.clock(f"score{note}", stage):
            entropies = score(stage, drawn.table, self.load_base)
        return Rollouts(stage, drawn.table, rewards, grades["boxed"].to_numpy(), entropies)

    def load_base(self) -> Any:
        """The base in transformers, loaded anew."""
        return load_model(str(self.base.folder), self.config.dtype)

    # ------------------------------------------------------------------ select, train

    def select(self, rollouts: Rollouts, gate: Gate) -> list[Example]:
        """The rollouts that teach something. Raises ValueError when there are none."""
        examples = select(
            rollouts.table["problem"].to_numpy(),
            rollouts.rewards,
            rollouts.table["token_ids"].to_pylist(),
            rollouts.entropies,
            gate.tau,
            self.config.selection,
            self.config.seed,
        )
        if not examples:
            raise ValueError(
                "problems: none has both right and wrong rollouts with decision points (their pass "
                f"rate is {rollouts.rewards.mean():.3f}); give problems nearer to what the base "
                "can do, raise --sampling.rollouts, or lower --gate.tau"
            )
        logger.info("%d rollouts to train on", len(examples))
        return examples

    @cached_property  # it warns once
    def lora(self) -> Lora:
        """The adapter's shape, without modules that training could not reach."""
        lora = self.config.lora
        if self.config.objective.positions == "all":
            return lora
        acts = acting(lora.target_modules)
        inert = sorted(set(lora.target_modules) - set(acts))
        if inert:
            logger.warning(
                "lora.target_modules: %s left out; a gated token reads the base's keys and values",
                ", ".join(inert),
            )
        return lora.model_copy(update={"target_modules": acts})

    def train(
        self,
        rollouts: Rollouts,
        examples: list[Example],
        gate: Gate,
        estimates: Estimates,
        start: Path | None = None,
    ) -> tuple[Stage, list[Path]]:
        """Train on `examples`, from the adapter `start` where it sampled them."""
        config = self.config
        settings = config.model_dump(include={"selection", "objective", "optimizer"}) | {
            "gate": gate.tau,
            "lora": self.lora.model_dump(),
            "dtype": config.dtype,
        }
        stage = rollouts.stage.then("training", settings | {"every": config.checkpoints.every})

        def on_checkpoint(model: Any, checkpoint: Path) -> str:
            text = estimates.update(model, checkpoint)
            return f"held-out {text}"

        with self.clock("train" if start is None else f"train from {start.name}", stage):
            checkpoints = train(
                stage,
                self.load_base,
                training_rows(rollouts.table, examples),
                self.lora,
                config.objective,
                config.optimizer,
                config.checkpoints.every,
                config.seed,
                budget=self.budget,
                start=start,
                on_start=estimates.prepare if config.mode == "gated" else None,
                on_checkpoint=on_checkpoint if config.mode == "gated" else None,
            )
        return stage, checkpoints

    # ------------------------------------------------------------------ choose

    def estimates(self, heldout: Rollouts, gates: Sequence[Gate]) -> Estimates:
        """Where the estimates of checkpoints behind `gates` are kept."""
        return Estimates(self, heldout, gates)

    def choose(
        self, stage: Stage, heldout: Rollouts, checkpoints: list[Path], gate: Gate, found: Estimates
    ) -> Choice:
        """Keep the best checkpoint, and the best gate for it."""
        config = self.config
        options = SamplingOptions(
            n=config.checkpoints.samples,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            max_tokens=config.sampling.max_tokens,
            seed=derive_seed(config.seed, "held-out"),
        )
        source = source_name(config.heldout or config.problems)
        base = base_result(heldout, self.heldout, source, options.temperature)
        candidates = found.candidates(checkpoints) if config.mode == "gated" else []
        stage = stage.then("decoded", {"problems": [p.model_dump() for p in self.heldout]})
        with self.clock("choose", stage), self.generator(adapter=True) as generator:

            def ask(label: str, applied: Applied, count: int) -> Result:
                return evaluate_generator(
                    generator,
                    self.renderer,
                    self.heldout[:count],
                    options,
                    self.verifier,
                    applied,
                    source=source,
                    label=label,
                    output=stage.path(),
                )

            if config.mode == "gated":
                decoded = config.checkpoints.decoded
                return choose_gated(candidates, decoded, len(self.heldout), base, ask)
            return choose_always(checkpoints, gate, len(self.heldout), base, ask)


class Estimates:
    """Estimated held-out scores, by checkpoint and gate; kept in the run folder as they are made.

    The scorer that makes them holds a model and the base's caches; it is made when first needed.
    """

    def __init__(self, run: FitRun, heldout: Rollouts, gates: Sequence[Gate]) -> None:
        self._run, self._heldout, self.gates = run, heldout, list(gates)
        self._settings = [Setting(gate.tau, gate.temperature) for gate in gates]
        self._stage = heldout.stage.then("estimates", {"settings": self._settings})
        self._scorer: HeldoutScorer | None = None

    def _path(self, checkpoint: Path) -> Path:
        return self._stage.path() / f"{checkpoint.parent.name}-{checkpoint.name}.json"

    def prepare(self, model: Any) -> None:
        """Compute what the scorer reads of `model`'s base, unless that is done."""
        if self._scorer is None:
            self._scorer = HeldoutScorer(
                model,
                self._heldout.answers(),
                self._settings,
                self._run.config.sampling.temperature,
                self._run.budget,
                self._stage.path("-base-cache"),
            )

    def update(self, model: Any, checkpoint: Path) -> WeightedScore:
        """Estimate the adapter that `model` has on, the `checkpoint`; return the first gate's."""
        self.prepare(model)
        assert self._scorer is not None
        training = model.training
        model.eval()
        scores = self._scorer.score(model)
        model.train(training)
        write_json(self._path(checkpoint), [scores[setting] for setting in self._settings])
        return scores[self._settings[0]]

    def candidates(self, checkpoints: Sequence[Path]) -> list[Candidate]:
        """Every checkpoint behind every gate; the first gate's first, in the checkpoints' order."""
        missing = [path for path in checkpoints if not self._path(path).exists()]
        if missing:
            self.close()
            model = peft_model(self._run.load_base(), self._run.lora, self._run.config.seed)
            for path in missing:
                load_adapter(model, path)
                self.update(model, path)
        self.close()
        scores = {path: _read_scores(self._path(path)) for path in checkpoints}
        return [
            Candidate(path, gate, scores[path][number])
            for number, gate in enumerate(self.gates)
            for path in checkpoints
        ]

    def best(self, checkpoints: Sequence[Path]) -> Path:
        """The checkpoint with the best estimate behind the first gate."""
        first = [one for one in self.candidates(checkpoints) if one.gate is self.gates[0]]
        return best_estimated(first).checkpoint

    def close(self) -> None:
        """Give the scorer's memory back: what comes next is an engine of its own."""
        if self._scorer is not None:
            self._scorer.close()
            self._scorer = None
        free_memory()


def _read_scores(path: Path) -> list[WeightedScore]:
    """As `Estimates.update` wrote them."""
    return [
        WeightedScore(Estimate(*value), Estimate(*gain), *rest)
        for value, gain, *rest in json.loads(path.read_text())
    ]


# --------------------------------------------------------------------------- the small print


def split_problems(config: FitConfig) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and problems to choose the checkpoint by; never the same ones."""
    read = partial(load_problems, data_dir=config.data_dir, shuffle=config.seed)
    if config.heldout is not None:
        heldout = read(config.heldout, limit=config.checkpoints.problems, field="heldout")
        return read(config.problems, limit=config.limit, without=heldout), heldout
    problems = read(config.problems, limit=config.limit)
    count = min(config.checkpoints.problems, len(problems) // 4)
    if count == 0:
        raise ValueError(f"problems: {len(problems)} are too few to hold any out; give 4 or more")
    heldout = problems[:count]
    asked = {problem.question for problem in heldout}
    return [problem for problem in problems[count:] if problem.question not in asked], heldout


def verify(
    stage: Stage, rollouts: pa.Table, problems: list[Problem], verifier: Verifier
) -> pa.Table:
    """Stage 2, verify: correct, boxed and timed_out of every rollout, [N] each."""
    path = stage.path(".parquet")
    if not path.exists():
        # Answers can be graded again from these and the rollouts.
        write_problems(stage.path("-problems.jsonl"), problems)
        asked = [problems[index] for index in rollouts["problem"].to_pylist()]
        verdicts = verifier.check(rollouts["text"].to_pylist(), asked)
        columns = {
            "correct": [v.correct for v in verdicts],
            "boxed": [v.boxed for v in verdicts],
            "timed_out": [v.timed_out for v in verdicts],
        }
        write_table(path, pa.table(columns))
    return pq.read_table(path)


def base_result(
    rollouts: Rollouts, problems: Sequence[Problem], source: str, temperature: float
) -> Result:
    """The base's answers to the held-out problems, as a result."""
    shape = (len(problems), -1)
    lengths = pc.list_value_length(rollouts.table["token_ids"]).to_numpy()
    reasons = np.array(rollouts.table["finish_reason"].to_pylist())
    return Result(
        label="base",
        mode="base",
        source=source,
        temperature=temperature,
        problem_ids=[problem.id for problem in problems],
        correct=rollouts.rewards.astype(np.bool_).reshape(shape),
        boxed=rollouts.boxed.reshape(shape),
        tokens=lengths.astype(np.int64).reshape(shape),
        gated=np.zeros_like(lengths, dtype=np.int64).reshape(shape),
        truncated=(reasons == "length").reshape(shape),
        sources=[problem.source for problem in problems],
    )


def training_rows(rollouts: pa.Table, examples: list[Example]) -> list[TrainingRow]:
    """The selected rollouts, joined with their tokens."""
    chosen = rollouts.take([example.row for example in examples])
    return [
        TrainingRow(
            prompt_ids=prompt,
            token_ids=tokens,
            advantages=example.advantages.tolist(),
            decisions=example.decisions.tolist(),
        )
        for prompt, tokens, example in zip(
            chosen["prompt_ids"].to_pylist(), chosen["token_ids"].to_pylist(), examples, strict=True
        )
    ]


class Clock:
    """Seconds each stage took, kept in the run folder; a stage found finished keeps its figure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        yield
        key = f"{name}-{stage.digest}"
        self.known.setdefault(key, round(time.perf_counter() - start, 2))
        self.seconds[name] = self.known[key]
        write_json(self.path, self.known)

    def summary(self) -> str:
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        return f"{stages}; together {sum(self.seconds.values()):.0f}"
