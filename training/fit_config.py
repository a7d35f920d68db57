"""Settings of `python -m training.fit`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from adapters.adapter import CONFIG
from adapters.base_checkpoint import BaseCheckpoint
from adapters.gate import acting
from adapters.manifest import Name, is_name
from adapters.moves import FILE as MOVES
from adapters.places import Place, check_writable, default_store
from adapters.recipe import RecipeSections, Sampling, recipe_for
from training.config import merge
from training.generation import EngineName
from training.hf_model import Dtype
from training.problems.overlap import Action
from training.problems.settings import ColumnsConfig
from training.trackers import Tracker, check_installed

logger = logging.getLogger("training.fit")

# What --mode always takes in place of the defaults: the paper's own fit.
ALWAYS: dict[str, Any] = {
    "objective": {"positions": "all"},
    "lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    # Whole rollouts take memory, decision points do not.
    "optimizer": {"batch_size": 1, "accumulation": 8},
}


class RunSettings(ColumnsConfig):
    """What belongs to one run: the base, the problems, and where the adapter goes."""

    model: str = Field(description="Base model: a folder or a hub id.")
    problems: str = Field(
        description="File, benchmark, hub dataset, reasoning_gym:NAME, or a mixture with +."
    )
    publish: Name | None = Field(None, description="Publish it in the store under this name.")
    store: Place | None = Field(
        None, description="Where --publish puts it; `reasonmaxxer doctor` prints the default."
    )
    output: Path | None = Field(None, description="Write it to this plain folder.")
    name: Name = Field("", description="The adapter's name; default: that of --publish, --output.")
    family: str = Field(
        "", description="Recipe, by name or as a YAML file; default: found for the model."
    )
    run_dir: Path = Field(Path(), description="Where stages keep results; default runs/fit/NAME.")
    limit: int | None = Field(None, ge=2, description="Use at most so many problems.")
    heldout: str | None = Field(
        None, description="Problems that choose the checkpoint; default: a share of --problems."
    )
    tests: str | None = Field(
        None,
        description="Problems that the adapter will be measured on: those that --problems has too "
        "are not trained on.",
    )
    overlap: Action = Field(
        "name",
        description="What to do with problems that share 13 words in a row with --heldout, --tests "
        "or a benchmark in --data-dir: name them, drop them, or refuse to train.",
    )
    mode: Literal["gated", "always"] = Field(
        "gated",
        description="How it will be served: gated, fitted at decision points behind the base's "
        "cache; always: at every step, fitted at every position (the paper's own).",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Shares of the problems; later ones are asked of the gated adapter.",
    )
    engine: EngineName = Field("auto", description="What samples: auto, vllm or transformers.")
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that share the base's weights while vLLM samples."
    )
    data_parallel_size: int = Field(
        1, ge=1, description="vLLM engines that sample side by side, each with GPUs of its own."
    )
    dtype: Dtype = Field(
        "auto",
        description="Type of the base's weights in training: float32, bfloat16, or auto, which is "
        "what is fast here.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of problems, rollouts and training.")
    training_seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of training alone, so that several trainings share one set of rollouts; "
        "default: --seed.",
    )
    report_to: list[Tracker] = Field(
        [], description="Where training is reported, live; the package must be installed."
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _as_a_list(cls, value: object) -> object:
        """In YAML as by flag: `report_to: wandb,mlflow`, or a list, or nothing."""
        if value is None:
            return []
        if isinstance(value, str):
            return [one.strip() for one in value.split(",") if one.strip()]
        return value

    @field_validator("report_to")
    @classmethod
    def _trackers_installed(cls, value: list[Tracker]) -> list[Tracker]:
        return check_installed(value)


class FitConfig(RecipeSections, RunSettings):
    """Settings of a fit; the recipe for the base has the defaults."""

    # `load` reads flags and YAML and looks at no model: `with_recipe` lays the recipe under them.

    program: ClassVar[str] = "python -m training.fit"

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Names derived from where the adapter goes."""
        publish, output = given.get("publish"), given.get("output")
        if publish is None and output is None:
            raise ValueError("--publish: name the adapter (or write a plain folder with --output)")
        name = given.get("name") or publish or Path(str(output)).resolve().name
        if not isinstance(name, str) or not is_name(name):
            raise ValueError(
                f"--name: '{name}' is not a name; use lower case letters, digits, . _ -"
            )
        return {"name": name, "run_dir": f"runs/fit/{name}"}

    def with_recipe(self, base: BaseCheckpoint) -> Self:
        """These settings over those of the recipe for `base`.

        Raises:
            ValueError: `family` is unknown, or two settings cannot go together.
        """
        # Of the recipe only what it says itself: --mode has defaults of its own.
        recipe = recipe_for(base, self.family).settings()
        low = merge(ALWAYS, recipe) if self.mode == "always" else recipe
        completed = type(self)(**merge(low, self.model_dump(exclude_unset=True)))
        completed.check_agreement()
        return completed

    def check_agreement(self) -> None:
        """Raise ValueError where two settings cannot go together."""
        objective = self.objective
        if objective.positions == "decisions":
            if self.mode == "always":
                raise ValueError("objective.positions: an always-on adapter is fitted at all")
            if self.optimizer.gradient_checkpointing:
                raise ValueError("optimizer.gradient_checkpointing: only with positions 'all'")
            if not acting(self.lora.target_modules):
                raise ValueError(
                    "lora.target_modules: keys and values are the base's behind the gate, so "
                    f"{', '.join(self.lora.target_modules)} would change nothing; add q_proj, "
                    "o_proj or the MLP, or fit with --mode always"
                )
        elif objective.name == "sequence":
            raise ValueError("objective.name: 'sequence' needs positions 'decisions'")
        if self.rounds > 1 and objective.positions == "all":
            raise ValueError("rounds: more than one needs objective.positions 'decisions'")
        if self.sampling.top_p < 1:
            logger.warning(
                "sampling.top_p: of rollouts alone; checkpoints are chosen and scored without it"
            )

    @property
    def heldout_sampling(self) -> Sampling:
        """How held-out answers are drawn, the base's and the adapters' alike, which are compared.

        It is as they are served, but without top_p: nothing that an adapter may prefer is cut off,
        for estimates rest on the base's answers.
        """
        return self.sampling.model_copy(
            update={
                "rollouts": self.checkpoints.rollouts,
                "rollout_temperature": None,
                "top_p": 1.0,
            }
        )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        """Raise ValueError, hours before the adapter is there, where it could not be written."""
        output = self.output
        if output is not None and (output / MOVES).exists():
            raise ValueError(f"output: {output} holds versions; add one with --publish NAME")
        if output is not None and output.exists() and not (output / CONFIG).exists():
            raise ValueError(f"output: {output} exists and is no adapter folder")
        if output is not None:
            _check("output", output.absolute().parent)
        if self.publish is not None:
            if not is_name(self.publish):
                raise ValueError(f"publish: '{self.publish}' is not a name")
            _check("store", self.store or default_store())
        return self


def _check(field: str, place: Path | str) -> None:
    """Raise ValueError, which names `field`, where `place` cannot be written."""
    try:
        check_writable(place)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
