"""Fit an adapter: sample, verify, score, select, train, choose, publish.

    python -m training.fit --model models/tiny-qwen2 --problems problems.jsonl --publish my-adapter
    python -m training.fit --model Qwen/Qwen2.5-1.5B --problems gsm8k --output my-adapter

`--publish NAME` makes it a version in the store and points the alias NAME at it, `--output` writes
a plain folder.

Each stage leaves its result in the run folder; the same command after a kill goes on from there.
Every setting of the family's recipe can be set by `--config FILE` or by flags (`--help`).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from adapters.base import BaseModel
from adapters.files import write_json
from adapters.manifest import Gate, Name, is_name
from adapters.moves import FILE as MOVES
from adapters.prompt import PromptRenderer
from adapters.recipe import (
    Checkpoints,
    GateChoice,
    Lora,
    Objective,
    Optimizer,
    Prompt,
    Sampling,
    Selection,
    get_recipe,
    recipe_for,
)
from adapters.reference import Reference
from adapters.store import SHIPPED, Store
from adapters.version import CONFIG
from training.choose import Choice, choose
from training.config import Config
from training.diagnose import diagnose
from training.generate import (
    Engine,
    Generator,
    SamplingOptions,
    derive_seed,
    open_generator,
)
from training.model import free_memory, load_model, open_base
from training.problems import Problem, load_problems
from training.publish import publish
from training.run import Stage, write_table
from training.sample import sample
from training.score import score
from training.select import Example, choose_gates, select
from training.train import LOG, TrainingRow, train
from training.verify import Verifier

logger = logging.getLogger("training.fit")


class FitConfig(Config):
    """Settings of a fit; those of the recipe default to the family's."""

    program: ClassVar[str] = "python -m training.fit"

    model: str = Field(description="Base model: a folder or a hub id.")
    problems: str = Field(description="JSONL or Parquet file, benchmark name or hub data set.")
    publish: Name | None = Field(None, description="Publish it in the store under this name.")
    store: Path | None = Field(None, description="Where --publish puts it; default: the shipped.")
    output: Path | None = Field(None, description="Write it to this plain folder.")
    name: Name = Field("", description="The adapter's name; default: that of --publish, --output.")
    family: str = Field("", description="Default: by the model's name and type.")
    run_dir: Path = Field(Path(), description="Where stages keep results; default runs/fit/NAME.")
    limit: int | None = Field(None, ge=2, description="Use at most so many problems.")
    heldout: str | None = Field(
        None, description="Problems that choose the checkpoint; default: a share of --problems."
    )
    engine: Engine = Field("auto", description="What samples: auto, vllm or transformers.")
    seed: int = Field(0, ge=0, lt=2**31)

    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling()
    selection: Selection = Selection()
    lora: Lora = Lora()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    gate: GateChoice = GateChoice()
    checkpoints: Checkpoints = Checkpoints()

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The family's recipe, and names derived from where the adapter goes."""
        if "publish" not in given and "output" not in given:
            raise ValueError("--publish: name the adapter (or write a plain folder with --output)")
        if "model" not in given:
            return {}  # validation will name the missing field
        base = open_base(given["model"])
        recipe = (
            get_recipe(given["family"])
            if given.get("family")
            else recipe_for(base.name, base.model_type)
        )
        name = given.get("name") or given.get("publish") or Path(given["output"]).resolve().name
        if not is_name(name):
            raise ValueError(
                f"--name: '{name}' is not a name; use lower case letters, digits, . _ -"
            )
        return {
            **recipe.model_dump(exclude={"models", "model_types"}),
            "name": name,
            "run_dir": f"runs/fit/{name}",
        }

    @model_validator(mode="after")
    def _can_be_written(self) -> FitConfig:
        """Hours before it is."""
        output = self.output
        if output is not None and (output / MOVES).exists():
            raise ValueError(f"output: {output} holds versions; add one with --publish NAME")
        if output is not None and output.exists() and not (output / CONFIG).exists():
            raise ValueError(f"output: {output} exists and is no adapter folder")
        if self.publish is not None:
            if not is_name(self.publish):
                raise ValueError(f"publish: '{self.publish}' is not a name")
            store = (self.store or SHIPPED).absolute()
            there = next(path for path in (store, *store.parents) if path.exists())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise ValueError(f"store: {store} cannot be written")
        return self


def fit(config: FitConfig) -> Path:
    """Run every stage that is not done yet; return the adapter's folder."""
    base = open_base(config.model)
    problems, heldout = split_problems(config)
    renderer = PromptRenderer.load(base.folder, config.prompt)
    run = config.run_dir
    config.save(run / "fit.yaml")
    clock = Clock(run / "clock.json")

    def generator(max_rank: int | None = None) -> AbstractContextManager[Generator]:
        longest = max(len(renderer.token_ids(p.problem)) for p in problems + heldout)
        return open_generator(
            str(base.folder),
            engine=config.engine,
            max_rank=max_rank,
            gated=max_rank is not None,
            max_model_len=longest + config.sampling.max_tokens,
            seed=config.seed,
        )

    stage = Stage.first(
        run,
        "rollouts",
        {
            "base": base.fingerprint,
            "template": renderer.template,
            "problems": [p.model_dump() for p in problems],
            "sampling": config.sampling.model_dump(),
            "seed": config.seed,
            "engine": config.engine,
        },
    )
    with clock("sample", stage), generator() as sampling:
        rollouts = sample(stage, problems, renderer, config.sampling, config.seed, sampling)

    with Verifier() as verifier:
        stage = stage.then("rewards", {})
        with clock("verify", stage):
            rewards = verify(stage, rollouts, problems, verifier)
        logger.info("pass@1 of the base on the rollouts: %.3f", rewards.mean())

        load_base = functools.cache(lambda: load_model(str(base.folder)))
        stage = stage.then("entropies", {})
        with clock("score", stage):
            entropies = score(stage, rollouts, load_base)

        gate, others = choose_gates(entropies, config.gate)
        examples = select(
            rollouts["problem"].to_numpy(),
            rewards,
            rollouts["token_ids"].to_pylist(),
            entropies,
            gate.tau,
            config.selection,
            config.seed,
        )
        describe_selection(gate, examples, rewards)

        settings = config.model_dump(
            include={"selection", "gate", "lora", "objective", "optimizer"},
            exclude={"gate": {"temperatures"}},  # they are chosen afterwards
        )
        stage = stage.then("training", settings | {"every": config.checkpoints.every})
        with clock("train", stage):
            checkpoints = train(
                stage,
                load_base,
                training_rows(rollouts, examples),
                config.lora,
                config.objective,
                config.optimizer,
                config.checkpoints.every,
                config.seed,
            )
            load_base.cache_clear()  # the adapter's answers come from an engine of its own
            free_memory()

        options = SamplingOptions(
            n=config.checkpoints.samples,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            max_tokens=config.sampling.max_tokens,
            seed=derive_seed(config.seed, "held-out"),
        )
        trained = stage
        stage = stage.then("heldout", {"problems": [p.model_dump() for p in heldout]})
        with clock("choose", stage), generator(config.lora.rank) as answering:
            choice = choose(
                stage,
                checkpoints,
                gate,
                others,
                config.gate.temperatures,
                heldout,
                renderer,
                options,
                answering,
                verifier,
                Path(config.heldout or config.problems).name,
            )
    folder = config.output or run / "adapter"
    publish(
        folder,
        config.name,
        choice.checkpoint,
        base,
        base_reference(config.model, base),
        config.family,
        choice.gate,
        [score for result in choice.results for score in result.to_scores()],
        config.seed,
        config.to_yaml(),
        shlex.join(["python", "-m", "training.fit", *sys.argv[1:]]),
    )
    where = str(folder)
    if config.publish is not None:
        store = Store(config.store or SHIPPED)
        version = store.publish(folder, config.publish, base=base)
        folder = store.path(Reference(config.publish, version.hash))
        where = f"{version.id} in {store.root}"
    write_json(run / "seconds.json", clock.seconds)
    for sentence in report(run, trained, rollouts, rewards, checkpoints, choice):
        logger.warning("%s", sentence)
    logger.info(
        "held out: base %s, always %s, gated %s", *(one.pass_at_1 for one in choice.results)
    )
    logger.info("gate: %s", choice.gate)
    logger.info("adapter: %s; seconds: %s", where, clock.summary())
    return folder


# ------------------------------------------------------------------------------- the small print


def split_problems(config: FitConfig) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and problems to choose the checkpoint by; never the same ones."""
    problems = load_problems(config.problems)
    random.Random(config.seed).shuffle(problems)
    problems = problems[: config.limit]
    if config.heldout is not None:
        heldout = load_problems(config.heldout)[: config.checkpoints.problems]
        shared = {p.problem for p in problems} & {p.problem for p in heldout}
        if shared:
            raise ValueError(f"heldout: {len(shared)} problems are also in --problems")
        return problems, heldout
    count = min(config.checkpoints.problems, len(problems) // 4)
    if count == 0:
        raise ValueError(f"problems: {len(problems)} are too few to hold any out; give 4 or more")
    return problems[count:], problems[:count]


def verify(
    stage: Stage, rollouts: pa.Table, problems: list[Problem], verifier: Verifier
) -> np.ndarray:
    """Stage 2, verify: the reward of every rollout, [N] of 0 and 1."""
    path = stage.path(".parquet")
    if not path.exists():
        answers = [problems[index].answer for index in rollouts["problem"].to_pylist()]
        verdicts = verifier.check(rollouts["text"].to_pylist(), answers)
        columns = {
            "correct": [v.correct for v in verdicts],
            "boxed": [v.boxed for v in verdicts],
            "timed_out": [v.timed_out for v in verdicts],
        }
        write_table(path, pa.table(columns))
    return pq.read_table(path)["correct"].to_numpy().astype(np.float64)


def describe_selection(gate: Gate, examples: list[Example], rewards: np.ndarray) -> None:
    """Log what training will see; raise ValueError when that is nothing."""
    logger.info("tau %.4f nats: gate rate %.3f on %d tokens", gate.tau, gate.rate, gate.tokens)
    if not examples:
        raise ValueError(
            "problems: none has both right and wrong rollouts with decision points "
            f"(the base's pass rate is {rewards.mean():.3f}); give problems nearer to what the "
            "base can do, raise --sampling.rollouts, or lower --gate.tau"
        )
    logger.info("%d rollouts to train on", len(examples))


def report(
    run: Path,
    trained: Stage,
    rollouts: pa.Table,
    rewards: np.ndarray,
    checkpoints: Sequence[Path],
    choice: Choice,
) -> list[str]:
    """Write report.json, what the run cost and found; return its warnings."""
    pass_rates = pa.table({"problem": rollouts["problem"], "reward": rewards})
    means = pass_rates.group_by("problem").aggregate([("reward", "mean")])["reward_mean"].to_numpy()
    mixed, asked = int(((means > 0) & (means < 1)).sum()), len(means)
    log = json.loads((trained.path() / LOG).read_text())
    warnings = diagnose(mixed, asked, log, choice.gate, choice.base, choice.gated)
    values = {
        "warnings": warnings,
        "problems": {"asked": asked, "mixed": mixed},
        "pass@1 of the rollouts": float(rewards.mean()),
        "tokens": {
            "rollouts": pc.sum(pc.list_value_length(rollouts["token_ids"])).as_py(),
            "heldout": choice.tokens,
        },
        "steps": int(checkpoints[-1].name.split("-")[1]),
        "checkpoint": choice.checkpoint.name,
        "gate": choice.gate.model_dump(include={"tau", "rate", "temperature"}),
        "heldout": {one.label: one.report() for one in choice.results},
    }
    write_json(run / "report.json", values)
    return warnings


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


def base_reference(model: str, base: BaseModel) -> str:
    """What names the base in adapter_config.json: never a path of this machine's."""
    return base.name if Path(model).is_absolute() else model


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


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    config = FitConfig.load(argv)
    with config.usage_errors():
        fit(config)


if __name__ == "__main__":
    main()
