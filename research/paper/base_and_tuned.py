"""The base and what was tuned from it: an adapter, or a whole model of the same tokenizer.

`footprint.py` and `intervene.py` compare the two, token by token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from adapters.adapter import AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.places import Place
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, recipe_for
from training.config import check_greedy
from training.evaluate import find_adapter
from training.generation import (
    EngineName,
    Generator,
    SamplingOptions,
    longest_sequence,
    open_generator,
)
from training.hf_model import load_model, open_base
from training.problems import Problem, load_problems
from training.problems.settings import ProblemsConfig


class PairConfig(ProblemsConfig):
    """Settings of what holds the two against each other on answers to problems."""

    model: str = Field(description="Base model: a folder or a hub id.")
    tuned: str = Field(description="Adapter folder or name, or a model: what was tuned from it.")
    store: Place | None = Field(
        None,
        description="The store, a folder or a bucket; `reasonmaxxer doctor` prints the default.",
    )
    family: str = Field("", description="Default: by the model's name.")
    problems: str = Field(description="As of training.evaluate.")
    limit: int | None = Field(None, ge=1, description="The first so many problems.")
    samples: int = Field(1, ge=1, description="Answers per problem.")
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="Default: the family's.")
    engine: EngineName = Field(
        "auto", description="What samples or replays: auto, vllm or transformers."
    )
    seed: int = Field(0, ge=0, lt=2**31)
    output: Path | None = Field(None, description="Folder for report.json and plots.")

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_greedy("--samples", self.samples, self.temperature)
        return self


@dataclass(frozen=True)
class Tuned:
    """What was tuned from a base; one of the two is there."""

    name: str
    adapter: AdapterVersion | None
    model: Path | None

    @classmethod
    def find(cls, tuned: str, store: Path | str | None, base: BaseCheckpoint) -> Tuned:
        """A model folder, an adapter folder, a name in `store`, or a hub id.

        Raises:
            ValueError: it is none of them, or does not fit.
        """
        if not (Path(tuned) / "config.json").is_file():
            try:
                version = find_adapter(tuned, store, base)
            except ValueError:
                if "/" not in tuned or os.path.exists(tuned):
                    raise
            else:
                return cls(version.name, version, None)
        model = open_base(tuned)
        return cls(model.name, None, model.folder)


@dataclass(frozen=True)
class Asked:
    """The two, what is asked of them, and how."""

    base: BaseCheckpoint
    tuned: Tuned
    recipe: Recipe
    renderer: PromptRenderer
    problems: list[Problem]
    prompts: list[list[int]]  # their token ids
    options: SamplingOptions
    engine: EngineName

    @classmethod
    def of(cls, config: PairConfig) -> Asked:
        """What the settings name.

        Raises:
            ValueError, FileNotFoundError: it cannot be read.
        """
        base = open_base(config.model)
        tuned = Tuned.find(config.tuned, config.store, base)
        recipe = recipe_for(base, config.family)
        renderer = PromptRenderer.load(base.folder, recipe.prompt)
        problems = load_problems(config.problems, limit=config.limit, data_dir=config.data_dir)
        options = SamplingOptions(
            config.samples,
            config.temperature,
            config.top_p,
            config.max_tokens or recipe.sampling.max_tokens,
            config.seed,
            stop=renderer.stop,
        )
        return cls(
            *(base, tuned, recipe, renderer, problems),
            prompts=[renderer.token_ids(problem.problem) for problem in problems],
            options=options,
            engine=config.engine,
        )

    def generator(self, *, gated: bool = False) -> AbstractContextManager[Generator]:
        """What answers: the tuned model or, where an adapter was tuned, its base with it."""
        adapter = self.tuned.adapter
        model = str(self.tuned.model or self.base.folder)
        return open_generator(
            model,
            engine=self.engine,
            max_rank=adapter.rank if adapter else None,
            gated=gated,
            max_model_len=longest_sequence(
                model, max(map(len, self.prompts)), self.options.max_tokens
            ),
            seed=self.options.seed,
        )


class Pair:
    """Both in memory; an adapter shares the base's weights.

    Raises:
        ValueError: they have different vocabularies.
    """

    def __init__(self, base: BaseCheckpoint, tuned: Tuned) -> None:
        self._base = load_model(str(base.folder))
        self._tuned: Any = None
        if tuned.adapter is not None:
            from peft import PeftModel

            self._peft: Any = PeftModel.from_pretrained(self._base, tuned.adapter.path).eval()
        else:
            self._peft = None
            self._tuned = load_model(str(tuned.model))
            sizes = [one.config.vocab_size for one in (self._base, self._tuned)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"--tuned: {sizes[1]} tokens where the base has {sizes[0]}")

    @property
    def device(self) -> Any:
        """Where both are."""
        return self._base.device

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The model as the base."""
        if self._peft is None:
            yield self._base
        else:
            with self._peft.disable_adapter():
                yield self._peft

    @contextmanager
    def tuned(self) -> Iterator[Any]:
        """The model as tuned: an adapter at every step."""
        yield self._tuned if self._peft is None else self._peft
