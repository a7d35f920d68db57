"""How a family of base models is prompted, sampled and trained: one YAML file per family.

    base = BaseCheckpoint.open("Qwen/Qwen2.5-1.5B")
    recipe_for(base).family                      # 'qwen2.5'
    recipe_for(base, "my-recipe.yaml")           # a recipe of your own

The fields are the paper's knobs; `recipes/*.yaml` hold their values. `training.fit` lays a run's
own YAML and flags over them.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.manifest import COLDEST

if TYPE_CHECKING:
    from adapters.base_checkpoint import BaseCheckpoint

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
GENERIC = "generic"  # the family of every base that no other recipe claims


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class FewShot(_Section):
    """A question and its answer, shown to the model before the user's own."""

    question: str
    answer: str


class Prompt(_Section):
    """How a problem becomes the text that the model continues."""

    chat_template: str | None = Field(
        None,
        description="Jinja template for tokenizers that have none; None: a plain question and "
        "answer.",
    )
    instruction: str | None = Field(None, description="Added where the conversation lacks it.")
    instruction_role: Literal["system", "user"] = Field(
        "system", description="system: a first message; user: appended to the last user message."
    )
    examples: list[FewShot] = Field([], description="Few-shot examples, before the user's message.")
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        description="Strings that end an answer; None: the next question, after a plain prompt.",
    )
    bos: bool | None = Field(
        None, description="Begin a plain prompt with BOS; None: where the tokenizer adds it."
    )


class Sampling(_Section):
    """Rollouts from the frozen base."""

    rollouts: int = Field(20, ge=2, description="Rollouts per problem.")
    temperature: float = Field(
        0.6, gt=0, description="Temperature of answers, and of rollouts by default."
    )
    rollout_temperature: float | None = Field(
        None, gt=0, description="Temperature of rollouts; a higher one tries more tokens."
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Nucleus sampling of rollouts; held-out answers are drawn without it.",
    )
    max_tokens: int = Field(2048, ge=1, description="Longest answer, in tokens.")


class Selection(_Section):
    """Which problems and rollouts are trained on."""

    problems: int = Field(50, ge=1, description="Problems kept: those nearest a pass rate of 0.5.")
    shortest: float = Field(0.8, gt=0, le=1, description="Share of a problem's rollouts kept.")
    rollouts: int | None = Field(
        None,
        ge=2,
        description="Rollouts kept of each problem, half of them right where possible; None: all. "
        "Fewer make the base's pass over them shorter.",
    )
    advantage_clip: float = Field(2.5, gt=0, description="Advantages are clipped to +- this.")
    baseline: Literal["problem", "prefix"] = Field(
        "problem",
        description="The reward is compared with the mean of the problem's rollouts, or of those "
        "that began with the same tokens.",
    )
    advantages: Literal["signed", "positive"] = Field(
        "signed", description="positive is an ablation: right rollouts alone."
    )
    gate: Literal["entropy", "random", "shut", "position", "none"] = Field(
        "entropy",
        description="Which positions train. All but entropy are controls: random positions, random "
        "ones where the gate is shut, the first ones, or every position.",
    )
    reward: Literal["verified", "random"] = Field(
        "verified", description="random is a control: coin tosses at the base's pass rate."
    )


class Lora(_Section):
    """The adapter's shape, in PEFT's words."""

    rank: int = Field(32, ge=1, le=512, description="Rank of the LoRA.")
    alpha: int = Field(64, ge=1, description="The update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the LoRA's input.")
    target_modules: list[str] = Field(
        default=["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Modules that get a LoRA; all-linear: all but the head. k_proj and v_proj have "
        "no effect behind the gate.",
    )


class Objective(_Section):
    """The loss: see training/objective.py."""

    positions: Literal["decisions", "all"] = Field(
        "decisions",
        description="decisions: the adapter runs at decision points, behind the base's cache, as "
        "it is served gated; all: at every position, as it is served always-on.",
    )
    name: Literal["paper", "clipped", "sequence"] = Field(
        "clipped",
        description="paper: signed cross-entropy; clipped: its ratio is clipped token by token; "
        "sequence: clipped once for each rollout.",
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="Lowest probability ratio.")
    clip_high: float = Field(4.0, gt=1, description="Highest probability ratio.")
    kl_weight: float = Field(
        0.2, ge=0, description="positions all: weight of KL(base || adapter) off the gate."
    )
    kl_positions: int | None = Field(
        64,
        ge=1,
        description="positions all: of each rollout, how many positions off the gate the KL term "
        "looks at, drawn at random; None: all.",
    )
    anchor_weight: float = Field(
        0.0, ge=0, description="Weight, at decision points, of KL(base at anchor_temperature || p)."
    )
    anchor_temperature: float = Field(
        1.0, gt=0, le=1, description="1: holds the adapter to the base; below: sharpens it."
    )
    entropy_weight: float = Field(
        0.0, ge=0, description="Weight, at decision points, of the adapter's own entropy."
    )
    min_probability: float = Field(
        0.0, ge=0, lt=1, description="paper: rarer tokens are left out of the negative term."
    )
    mean: Literal["rollout", "token"] = Field(
        "rollout", description="Whether each rollout or each token has the same weight."
    )


class Optimizer(_Section):
    """AdamW and its schedule, in transformers' words."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    warmup_steps: int = Field(50, ge=0, description="Steps until the peak learning rate.")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="Learning rate after the warm-up."
    )
    epochs: float = Field(1.35, gt=0, description="Passes over the selected rollouts.")
    batch_size: int = Field(8, ge=1, description="Rollouts per forward pass.")
    accumulation: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    gradient_checkpointing: bool = Field(
        False, description="With positions all: less memory, more time."
    )
    order: Literal["strongest", "shuffled"] = Field(
        "strongest",
        description="strongest: by |advantage| x decision points / length, largest first.",
    )


class GateChoice(_Section):
    """Thresholds and temperatures of the gate that are tried."""

    tau: float | None = Field(
        None, ge=0, description="Threshold in nats; None: calibrated to `rate`."
    )
    rate: float = Field(
        0.05, gt=0, le=1, description="Wanted gate rate, from which tau is calibrated."
    )
    others: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.02, 0.1], description="Other gate rates that are tried for serving."
    )
    temperatures: list[Annotated[float, Field(ge=COLDEST, le=1)]] = Field(
        [], description="Correction temperatures that are tried for serving, beside 1."
    )


class BaseCache(_Section):
    """Where the base's keys and values of rollouts are kept; what fits nowhere is recomputed."""

    memory_gib: float = Field(4.0, ge=0, description="GiB of memory for keys and values.")
    disk_gib: float = Field(
        16.0, ge=0, description="GiB of disk, in the run folder, for what exceeds the memory."
    )
    keep: bool = Field(
        False,
        description="Leave them on disk, where the next fit in the run folder finds those of the "
        "same rollouts.",
    )


class Checkpoints(_Section):
    """Which checkpoint is kept: the best on problems held out from training."""

    every: float = Field(0.15, gt=0, description="Epochs between two checkpoints.")
    apart: int = Field(
        1, ge=1, description="Steps that lie between them at least, however short an epoch is."
    )
    problems: int = Field(100, ge=1, description="Problems held out for the choice.")
    rollouts: int = Field(
        8, ge=2, description="The base's answers to each, from which gated scores are estimated."
    )
    decoded: int = Field(2, ge=1, description="Candidates decoded to confirm their estimate.")
    samples: int = Field(2, ge=1, description="Answers per problem and decoded candidate.")


class RecipeSections(BaseModel):
    """Everything that is the family's rather than the run's."""

    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling()
    selection: Selection = Selection()
    lora: Lora = Lora()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    gate: GateChoice = GateChoice()
    base_cache: BaseCache = BaseCache()
    checkpoints: Checkpoints = Checkpoints()


class RecipeRules(_Section):
    """The name of a recipe, and which base models it is for."""

    family: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    models: list[str] = Field(default=[], description="Regular expressions for the model's names.")
    model_types: list[str] = Field(
        default=[], description="config.json's model_type, where no recipe knows a name."
    )
    vocab_sizes: list[int] = Field(
        default=[], description="With model_types: config.json's vocab_size; empty: any."
    )
    instruct: bool | None = Field(
        None, description="Only models tuned to follow instructions, or only those that are not."
    )


class Recipe(RecipeSections, RecipeRules):
    """One family: which base models it is for, and how those are prompted, sampled and trained."""

    @model_validator(mode="after")
    def _patterns(self) -> Self:
        for pattern in self.models:
            re.compile(pattern)
        return self

    def settings(self) -> dict[str, Any]:
        """What the recipe itself says of prompt, sampling and training, section by section."""
        return self.model_dump(exclude=_RULES, exclude_unset=True)

    def knows_name(self, name: str, instruct: bool) -> bool:
        """Whether the recipe is for models of this name."""
        return self._suits(instruct) and any(re.search(pattern, name) for pattern in self.models)

    def knows_type(self, facts: ModelFacts) -> bool:
        """Whether the recipe is for models of this architecture and vocabulary."""
        return (
            self._suits(facts.instruct)
            and facts.model_type in self.model_types
            and (not self.vocab_sizes or facts.vocab_size in self.vocab_sizes)
        )

    def _suits(self, instruct: bool) -> bool:
        return self.instruct is None or self.instruct == instruct


_RULES = {"models", "model_types", "vocab_sizes", "instruct"}


class ModelFacts(NamedTuple):
    """What is known of a base model, as far as recipes ask."""

    names: tuple[str, ...]  # its own first, then those of what it was made from
    model_type: str
    vocab_size: int | None = None
    instruct: bool = False  # tuned to follow instructions


class Found(NamedTuple):
    """A recipe, and why it is this one."""

    recipe: Recipe
    reason: str


@cache
def recipes() -> dict[str, Recipe]:
    """Family -> recipe, in the order in which they are asked: by file name, the generic last."""
    loaded = (
        Recipe.model_validate(yaml.safe_load(path.read_text()))
        for path in sorted(RECIPES.glob("*.yaml"))
    )
    ordered = sorted(loaded, key=lambda recipe: recipe.family == GENERIC)
    return {recipe.family: recipe for recipe in ordered}


def get_recipe(family: str) -> Recipe:
    """The recipe of `family`. Raises ValueError naming the known ones."""
    try:
        return recipes()[family]
    except KeyError:
        raise ValueError(
            f"family: '{family}' is unknown; known: {', '.join(recipes())}; "
            "or give the .yaml file of a recipe of your own"
        ) from None


def read_recipe(path: Path) -> Recipe:
    """A recipe of the user's own. Raises ValueError where the file is none."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise ValueError(f"family: {path}: {place}: {wrong['msg']}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, re.error) as error:
        raise ValueError(f"family: {path}: {error}") from error


def find_recipe(facts: ModelFacts) -> Found:
    """The recipe of a base model: by its names, else by its type, else the generic one."""
    for name in facts.names:
        for recipe in recipes().values():
            if recipe.knows_name(name, facts.instruct):
                return Found(recipe, f"the name '{name}' matches")
    for recipe in recipes().values():
        if recipe.knows_type(facts):
            return Found(recipe, f"model_type '{facts.model_type}'")
    return Found(
        recipes()[GENERIC],
        f"no other recipe is for '{facts.names[0]}' (model_type '{facts.model_type}')",
    )


def look_up(base: BaseCheckpoint, family: str = "") -> Found:
    """The recipe `family`, by name or as a YAML file, or the one found for `base`.

    Only a user may name a file: what a manifest says goes through `get_recipe`.

    Raises:
        ValueError: `family` is unknown.
    """
    if family.endswith((".yaml", ".yml")):
        return Found(read_recipe(Path(family)), f"read from {family}")
    return Found(get_recipe(family), "named") if family else find_recipe(base.facts)


def recipe_for(base: BaseCheckpoint, family: str = "", made_with: str = "") -> Recipe:
    """The recipe that `look_up` finds; which one and why is logged.

    Args:
        made_with: what an adapter's manifest names, which goes before what is found for `base`.
    """
    if made_with and not family:
        return get_recipe(made_with)
    found = look_up(base, family)
    logger.info("recipe '%s': %s", found.recipe.family, found.reason)
    return found.recipe
