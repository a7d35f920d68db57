"""Measure the gate of an adapter: the table of gate rates and thresholds that a request asks by.

    reasonmaxxer store calibrate their-math --prompts questions.jsonl
    python -m training.calibrate their-math --model Qwen/Qwen2.5-1.5B-Instruct

The base answers the prompts alone, at the recipe's temperature. The entropies of its next-token
distributions, at temperature 1, give tau for each gate rate. The adapter itself takes no part: the
gate looks at the base. The result is a new version of the adapter with the same weights.

The gated adapter's answers differ from the base's at few tokens, so its gate rate is about the same
on the same prompts. On other prompts it may differ by a factor: calibrate on what you will serve.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from adapters.adapter import AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.calibration import add_gate
from adapters.calibration_prompts import PROMPTS
from adapters.gate import RATES, calibrate, calibration_table
from adapters.manifest import Gate
from adapters.places import Place, default_model, default_store, open_store
from adapters.program import program
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, recipe_for
from adapters.store import Store, StoreError
from training.config import Config, check_greedy
from training.evaluation.statistics import Estimate, ratio
from training.generation import (
    Completion,
    EngineName,
    SamplingOptions,
    longest_sequence,
    open_generator,
)
from training.hf_model import Dtype, batches, load_model, open_base
from training.problems import source_name
from training.problems.prompts import Prompt, load_prompts, question
from training.stages.score import sequence_entropies

logger = logging.getLogger("training.calibrate")

SHIPPED = "shipped prompts"
FEW = 30  # tokens above tau; with fewer, a threshold is a guess
TOKEN_BUDGET = 16384  # padded tokens of a batch, where transformers scores


class CalibrateConfig(Config):
    """Settings of a calibration."""

    program: ClassVar[str] = "python -m training.calibrate"

    name: CliPositionalArg[str] = Field(description="Adapter in the store: NAME or NAME@HASH.")
    prompts: str | None = Field(
        None,
        description="File of messages or questions (JSON, JSONL, Parquet, CSV, TSV), or a source "
        "of problems; default: 40 shipped prompts.",
    )
    store: Place | None = Field(
        None,
        description="The store, a folder or a bucket; `reasonmaxxer doctor` prints the default.",
    )
    model: str | None = Field(
        None, description="Its base: a folder or a hub id; default: as its manifest says."
    )
    family: str = Field(
        "", description="Recipe, by name or as a YAML file; default: the adapter's."
    )
    rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Gate rate that tau is set for; default: the adapter's, else the recipe's.",
    )
    tau: float | None = Field(None, ge=0, description="Set this tau instead, in nats.")
    alias: bool = Field(True, description="Point the alias at the new version.")
    limit: int = Field(128, ge=1, description="Prompts at most, drawn at random.")
    answers: int = Field(1, ge=1, description="Answers to each prompt.")
    temperature: float | None = Field(
        None, ge=0, description="Sampling temperature of the answers; default: the recipe's."
    )
    max_tokens: int | None = Field(None, ge=1, description="Longest answer; default: the recipe's.")
    engine: EngineName = Field("auto", description="What samples: auto, vllm or transformers.")
    dtype: Dtype = Field(
        "auto", description="Type of the base's weights: float32, bfloat16 or auto."
    )
    data_dir: Path | None = Field(None, description="Folder with local copies of benchmarks.")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_greedy("--answers", self.answers, self.temperature)
        return self


class Measured(NamedTuple):
    """Entropies of the base on its own answers."""

    answers: list[npt.NDArray[np.float32]]  # [T] each, nats; those to one prompt stand together
    each: int  # answers to a prompt

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.answers))

    def gate(self, rate: float, tau: float | None = None, temperature: float = 1.0) -> Gate:
        """A gate of this rate, or of the threshold `tau` if given."""
        h = np.concatenate(self.answers)
        tau = calibrate(h, rate) if tau is None else tau
        return Gate(
            tau=tau,
            rate=float((h > tau).mean()),
            tokens=h.size,
            temperature=temperature,
            table=calibration_table(h),
        )

    def gate_rate(self, tau: float) -> Estimate:
        """The gate rate at `tau`; its standard error takes tokens of one prompt as dependent."""
        opened = np.array([(h > tau).sum() for h in self.answers]).reshape(-1, self.each)
        tokens = np.array([len(h) for h in self.answers]).reshape(-1, self.each)
        return ratio(opened.sum(1), tokens.sum(1))


def calibrate_adapter(config: CalibrateConfig) -> tuple[AdapterVersion, Estimate]:
    """Measure, and add the version; returns it with its gate rate.

    Raises:
        ValueError, FileNotFoundError: a setting that only files could prove wrong.
        StoreError: the store cannot be written.
    """
    store = open_store(config.store or default_store())
    version = _find(store, config.name)
    base = _base_of(version, config.model)
    version.check_fits(base)
    made_with = version.manifest.family if version.manifest else ""
    recipe = recipe_for(base, config.family, made_with)
    prompts = _prompts(config)
    logger.info("%d prompts (%s)", len(prompts), _named(config.prompts))
    measured = measure(config, base, recipe, prompts)
    own = version.gate
    rate = config.rate or (own.rate if own else recipe.gate.rate)
    gate = measured.gate(rate, config.tau, own.temperature if own else 1.0)
    _warn_of_few(gate)
    made_by = {
        "calibrated on": f"{_named(config.prompts)}, {len(prompts)} prompts",
        "calibrated at": f"temperature {_temperature(config, recipe):g}, seed {config.seed}",
    }
    added = add_gate(
        *(store, config.name, gate, base),
        family=config.family,
        made_by=made_by,
        alias=config.alias,
    )
    return added, measured.gate_rate(gate.tau)


def measure(
    config: CalibrateConfig, base: BaseCheckpoint, recipe: Recipe, prompts: Sequence[Prompt]
) -> Measured:
    """The base's entropies on its own answers to `prompts`.

    Raises:
        ValueError: no answer has a token.
    """
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    ids = [renderer.chat_ids(prompt) for prompt in prompts]
    options = SamplingOptions(
        n=config.answers,
        temperature=_temperature(config, recipe),
        top_p=recipe.sampling.top_p,
        max_tokens=config.max_tokens or recipe.sampling.max_tokens,
        seed=config.seed,
        entropies=True,
        stop=renderer.stop,
    )
    with open_generator(
        str(base.folder),
        engine=config.engine,
        gated=True,
        max_model_len=longest_sequence(
            str(base.folder), max(map(len, ids)), options.max_tokens, "prompts"
        ),
        seed=config.seed,
        dtype=config.dtype,
    ) as generator:
        completions = generator.generate(ids, options, label="calibrate")
    found = Measured(entropies_of(base, config.dtype, ids, completions), config.answers)
    if not found.tokens:
        raise ValueError(f"prompts: the answers of '{base.name}' are empty; give other prompts")
    return found


def entropies_of(
    base: BaseCheckpoint,
    dtype: Dtype,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[Completion]],
) -> list[npt.NDArray[np.float32]]:
    """[T] entropies of each answer, prompt by prompt: as reported, else of one pass over it."""
    rows = [
        (ids, one) for ids, answers in zip(prompts, completions, strict=True) for one in answers
    ]
    if all(one.entropies is not None for _, one in rows):
        return [np.asarray(one.entropies, np.float32) for _, one in rows]
    model: Any = load_model(str(base.folder), dtype)
    found: dict[int, npt.NDArray[np.float32]] = {}
    lengths = [len(ids) + len(one.token_ids) for ids, one in rows]
    for batch in batches(lengths, TOKEN_BUDGET):
        scored = sequence_entropies(
            model, [rows[row][0] for row in batch], [rows[row][1].token_ids for row in batch]
        )
        found |= dict(zip(batch, scored, strict=True))
    return [found[row] for row in range(len(rows))]


# ------------------------------------------------------------------------------- the small print


def _find(store: Store, reference: str) -> AdapterVersion:
    try:
        return store.get(reference)
    except KeyError:
        known = ", ".join(store.names()) or "none"
        raise ValueError(f"name: '{reference}' is not in {store.place} (there: {known})") from None


def _base_of(version: AdapterVersion, model: str | None) -> BaseCheckpoint:
    """The base to measure: as named, else as the manifest names it, else the shipped one."""
    if model is not None:
        return open_base(model)
    made_for = version.manifest.base.model if version.manifest else ""
    shipped = default_model()
    if shipped and Path(shipped).name == made_for:
        return BaseCheckpoint.open(shipped)
    if not made_for:
        raise ValueError(f"model: '{version.name}' does not say which base it is for; name it")
    try:
        return open_base(made_for)
    except FileNotFoundError:
        raise ValueError(
            f"model: the base '{made_for}' of '{version.name}' is neither a folder here nor a hub "
            "model within reach; name its folder"
        ) from None


def _temperature(config: CalibrateConfig, recipe: Recipe) -> float:
    sampling = recipe.sampling
    return sampling.temperature if config.temperature is None else config.temperature


def _prompts(config: CalibrateConfig) -> list[Prompt]:
    if config.prompts is None:
        return [question(text) for text in PROMPTS][: config.limit]
    try:
        return load_prompts(
            config.prompts, limit=config.limit, data_dir=config.data_dir, seed=config.seed
        )
    except ValueError as error:
        raise ValueError(f"prompts: {error}") from error


def _named(prompts: str | None) -> str:
    return SHIPPED if prompts is None else source_name(prompts)


def _warn_of_few(gate: Gate) -> None:
    """Say which rates of the table rest on few tokens."""
    lowest = FEW / gate.tokens
    unsure = [rate for rate in RATES if rate < lowest]
    if unsure:
        logger.warning(
            "%d tokens are few: thresholds for gate rates below %.3f rest on fewer than %d of "
            "them; give more --prompts, or --answers 4",
            *(gate.tokens, lowest, FEW),
        )


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = CalibrateConfig.begin(argv)
    try:
        with config.usage_errors((ValueError, FileNotFoundError)):
            version, rate = calibrate_adapter(config)
    except StoreError as error:
        print(f"{program(config.program)}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    gate = version.gate
    assert gate is not None
    print(version.id)
    print(f"tau {gate.tau:.4f} nats: gate rate {rate} on {gate.tokens} tokens of {rate.n} prompts")
    print("gate rate  tau")
    for wanted, tau in gate.table:
        print(f"{wanted:<9g}  {tau:.4f}")


if __name__ == "__main__":
    main()
