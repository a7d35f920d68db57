"""One fit under way: what all of its stages share.

A `Run` holds the settings, the base, the problems and the run folder. Each stage is a function in
`training/stages/` that takes the run and what the stages before it have found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from adapters.base_checkpoint import BaseCheckpoint
from adapters.gate import acting
from adapters.prompt import PromptRenderer
from adapters.recipe import Lora
from training import processes
from training.base_cache import Budget, check_readable, is_readable
from training.decision_points import layer_windows
from training.fit_config import FitConfig
from training.generation import Generator, longest_sequence, open_generator
from training.grading import Verifier
from training.hf_model import best_dtype, load_model, open_base
from training.problems import Problem, benchmarks_at_hand, load_problems, without_overlaps
from training.run_folder import Clock, clear_scratch, held

logger = logging.getLogger("training.fit")


@dataclass
class Run:
    """What the stages of one fit share.

    Attributes:
        config: every setting, those of the family's recipe among them.
        base: the frozen model that the adapter is for.
        renderer: makes prompts of problems.
        problems: those to train on.
        heldout: those to select the checkpoint by; none of them is trained on.
        verifier: grades answers; closed at the end of the run.
        max_model_len: tokens of the longest prompt and its answer.
    """

    config: FitConfig
    base: BaseCheckpoint
    renderer: PromptRenderer
    problems: list[Problem]
    heldout: list[Problem]
    verifier: Verifier
    max_model_len: int

    @classmethod
    @contextmanager
    def open(cls, config: FitConfig) -> Iterator[Run]:
        """The run that `config` describes, completed by the recipe for its base.

        Raises:
            FileNotFoundError: there is no such base model.
            ValueError: the settings, the base or the problems cannot be used; the message names
                the field.
        """
        base = open_base(config.model)
        config = _with_targets(config.with_recipe(base), base)
        processes.share(config.optimizer.batch_size, config.optimizer.accumulation)
        if config.objective.positions == "decisions":
            shape = AutoConfig.from_pretrained(base.folder)
            check_readable(shape)
            layer_windows(shape)
        problems, heldout = split_problems(config)
        if config.rounds > len(problems):
            raise ValueError(
                f"rounds: {config.rounds} are more than the {len(problems)} problems to train on; "
                "each needs one of its own"
            )
        renderer = PromptRenderer.load(base.folder, config.prompt)
        max_model_len = longest_sequence(
            str(base.folder),
            max(len(renderer.token_ids(problem.problem)) for problem in problems + heldout),
            config.sampling.max_tokens,
        )
        with held(config.run_dir, "run-dir"), Verifier() as verifier:
            clear_scratch(config.run_dir)
            config.save(config.run_dir / "fit.yaml")
            yield cls(config, base, renderer, problems, heldout, verifier, max_model_len)

    def __post_init__(self) -> None:
        self.clock = Clock(self.config.run_dir / "clock.json")
        cache = self.config.base_cache
        self.budget = Budget.of_gib(cache.memory_gib, cache.disk_gib)
        # A model that cannot be gated reports no entropies; they are computed afterwards.
        self._shape = AutoConfig.from_pretrained(self.base.folder)
        self._can_gate = is_readable(self._shape)

    @property
    def shares(self) -> list[list[Problem]]:
        """The training problems, divided into one share for each round."""
        rounds = self.config.rounds
        return [self.problems[number::rounds] for number in range(rounds)]

    @property
    def training_seed(self) -> int:
        """The seed of what comes after the rollouts: controls, first weights, order."""
        config = self.config
        return config.seed if config.training_seed is None else config.training_seed

    @property
    def kept_caches(self) -> Path | None:
        """Where the base's caches stay for later fits in this run folder; None: they do not."""
        if not self.config.base_cache.keep:
            return None
        # Equal tokens have equal caches with the same base in the same data type alone.
        dtype = self.config.dtype if self.config.dtype != "auto" else best_dtype(self._shape)
        return self.config.run_dir / f"base-caches-{self.base.fingerprint[:10]}-{dtype}"

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

    def generator(self, adapter: bool) -> AbstractContextManager[Generator]:
        """A generator of the base alone or, with `adapter`, of the base with an adapter too."""
        return open_generator(
            str(self.base.folder),
            engine=self.config.engine,
            max_rank=self.config.lora.rank if adapter else None,
            gated=self._can_gate,
            max_model_len=self.max_model_len,
            seed=self.config.seed,
            tensor_parallel_size=self.config.tensor_parallel_size,
            data_parallel_size=self.config.data_parallel_size,
        )

    @property
    def load_base(self) -> Callable[..., Any]:
        """What loads the base in transformers, anew with each call."""
        return partial(load_model, str(self.base.folder), self.config.dtype)


def split_problems(config: FitConfig) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and problems to select the checkpoint by; never the same ones.

    Raises:
        ValueError: the problems cannot be read, or are too few to hold any out.
    """

    def read(source: str, **options: Any) -> list[Problem]:
        return load_problems(source, shuffle=config.seed, **options, **config.reading)

    tests = read(config.tests, field="tests") if config.tests is not None else []
    if config.heldout is not None:
        heldout = read(config.heldout, limit=config.checkpoints.problems, field="heldout")
        problems = read(config.problems, limit=config.limit, without=[*heldout, *tests])
        return _apart(config, problems, heldout, tests), heldout
    problems = read(config.problems, limit=config.limit, without=tests)
    problems = _apart(config, problems, [], tests)
    count = min(config.checkpoints.problems, len(problems) // 4)
    if count == 0:
        raise ValueError(f"problems: {len(problems)} are too few to hold any out; give 4 or more")
    heldout = problems[:count]
    rest = without_overlaps(problems[count:], heldout, "the held-out share", config.overlap)
    return rest, heldout


def _apart(
    config: FitConfig, problems: list[Problem], heldout: list[Problem], tests: list[Problem]
) -> list[Problem]:
    """The problems, after those were named that tests or benchmarks at hand have too."""
    named = {"--heldout": heldout, "--tests": tests}
    named |= benchmarks_at_hand(config.data_dir, besides=config.problems)
    for name, others in named.items():
        problems = without_overlaps(problems, others, name, config.overlap)
    return problems


def _with_targets(config: FitConfig, base: BaseCheckpoint) -> FitConfig:
    """`config` with the modules of its LoRA looked up in the base, before anything is sampled.

    Raises:
        ValueError: the base has no module of one of these names.
    """
    try:
        targets = base.modules.targets(config.lora.target_modules)
    except ValueError as error:
        raise ValueError(f"lora.target_modules: {error}") from error
    lora = config.lora.model_copy(update={"target_modules": targets})
    return config.model_copy(update={"lora": lora})
