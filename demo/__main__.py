"""The main job, end to end: fit an adapter, serve it beside its base, and measure both over HTTP.

    python -m demo                                                       (or: make demo)
    python -m demo --model Qwen/Qwen2.5-0.5B-Instruct --problems reasoning_gym:chain_sum

The adapter is fitted by `python -m training.fit`, served by `python -m serving`, and asked by the
`openai` client; the table and `runs/demo/report.json` say what came of it. A second call finds the
adapter fitted. Without `--problems` they are those of the miniature bases, which are in `models/`
beside them.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_json, write_text
from adapters.manifest import Mode
from adapters.recipe import Recipe, recipe_for
from adapters.store import Store
from demo.server import end_as_asked, running_server
from training.evaluation import Endpoint, Result, compare, evaluate_url, table
from training.generation import SamplingOptions
from training.grading import Verifier
from training.hf_model import open_base
from training.problems import Problem, load_problems, source_name, write_problems
from training.problems.settings import ProblemsConfig
from training.stages.publish import publish_zeros

logger = logging.getLogger("demo")

FEWEST = 20  # problems to learn from, and to ask
SHIPPED_PROBLEMS = Path("models/tiny-problems")  # train.jsonl and heldout.jsonl


class DemoConfig(ProblemsConfig):
    """Settings of the demonstration."""

    program: ClassVar[str] = "python -m demo"

    model: str = Field("models/tiny-qwen2-hurried", description="Base: a folder or a hub id.")
    problems: str | None = Field(
        None,
        description="Any source that training.fit reads; default: those in models/tiny-problems.",
    )
    train: int | None = Field(
        None, ge=FEWEST, description="Problems given to fit; default: 240, of a real model 96."
    )
    questions: int | None = Field(
        None, ge=10, description="Other problems, asked over HTTP; default: 500, or 100."
    )
    samples: int | None = Field(
        None, ge=1, description="Answers per problem and model; default: 4, or 1."
    )
    temperature: float = Field(0.6, gt=0)
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer; default: the recipe's, 512 at most."
    )
    seed: int = Field(0, ge=0)
    output: Path = Path("runs/demo")


class Size(NamedTuple):
    """How much is asked. A real model answers some hundred times more slowly than a miniature."""

    train: int
    questions: int
    samples: int
    max_tokens: int

    @classmethod
    def of(cls, config: DemoConfig, recipe: Recipe) -> Size:
        small = recipe.family.startswith("tiny")
        train, questions, samples = (240, 500, 4) if small else (96, 100, 1)
        return cls(
            config.train or train,
            config.questions or questions,
            config.samples or samples,
            config.max_tokens or min(recipe.sampling.max_tokens, 512),
        )


class Way(NamedTuple):
    """One line of the table."""

    label: str
    model: str  # the name that the client sends
    mode: Mode
    temperature: float
    weights: str  # what answers, for answers that were kept


def run_module(*arguments: str) -> None:
    """Run `python -m arguments...`; a failure ends the demonstration with its exit code."""
    print(f"\n$ python -m {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step; return the report."""
    base = open_base(config.model)
    recipe = recipe_for(base)
    size, out = Size.of(config, recipe), config.output
    train, test = out / "train.jsonl", out / "test.jsonl"
    make_problems(config, size, train, test)
    store = out / "store"
    run_module(
        *("training.fit", "--model", config.model, "--problems", str(train)),
        *("--output", str(store / "demo"), "--run-dir", str(out / "fit")),
        *("--sampling.max-tokens", str(size.max_tokens), "--seed", str(config.seed)),
    )
    publish_zeros(store / "nothing", store / "demo", "nothing", base)
    fit_seconds = sum(json.loads((out / "fit" / "seconds.json").read_text()).values())

    log = out / "server.log"
    with running_server(*("--model", config.model, "--adapters", str(store)), log=log) as server:
        results = ask(config, size, base, server.url, load_problems(str(test)))
    print("\n" + table(results))
    report = {result.label: result.report() for result in results} | {
        "model": base.name,
        "differences": compare(results),
        "fit_seconds": round(fit_seconds, 1),
        "problems_fitted_on": size.train,
        "temperature": config.temperature,
        "seed": config.seed,
    }
    write_json(out / "report.json", report)
    print(f"\nfit took {fit_seconds:.0f} s; report: {out / 'report.json'}; server log: {log}")
    return report


def make_problems(config: DemoConfig, size: Size, train: Path, test: Path) -> None:
    """Write problems to fit on and others to ask."""
    if config.problems is None:
        write_text(train, take(SHIPPED_PROBLEMS / "train.jsonl", size.train, config.seed))
        write_text(test, take(SHIPPED_PROBLEMS / "heldout.jsonl", size.questions, config.seed))
        return
    problems = load_problems(
        config.problems, limit=size.train + size.questions, data_dir=config.data_dir
    )
    first, second = divide(problems, size.train, config.seed)
    write_problems(train, first)
    write_problems(test, second)


def take(path: Path, count: int, seed: int) -> str:
    """`count` lines of a file: seed 0 takes the first ones, seed 1 those after them, and so on.

    Raises:
        ValueError: the file has too few.
    """
    with path.open(encoding="utf-8") as file:
        lines = list(file)
    if count > len(lines):
        raise ValueError(f"{path} has {len(lines)} problems, not {count}: give more by --problems")
    first = seed * count % len(lines)
    return "".join([*lines[first:], *lines[:first]][:count])


def divide(
    problems: Sequence[Problem], train: int, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """`train` problems, two thirds at most, and the others; of one question all are in one part.

    Raises:
        ValueError: too few problems.
    """
    unlike = list({problem.question: problem for problem in problems}.values())
    if len(unlike) < 2 * FEWEST:
        raise ValueError(f"problems: {len(unlike)} different ones; give {2 * FEWEST} or more")
    random.Random(seed).shuffle(unlike)
    count = min(train, len(unlike) * 2 // 3)
    return unlike[:count], unlike[count:]


def ask(
    config: DemoConfig, size: Size, base: BaseCheckpoint, url: str, problems: Sequence[Problem]
) -> list[Result]:
    """The base, and the adapter at every step and at decision points: the same problems each."""
    # Answers are kept by what gave them, so that a killed demonstration asks only the rest.
    store, warm = Store(config.output / "store"), config.temperature
    # The server has made versions of these two folders; their hashes cover weights and gate.
    # The server takes its key from the environment, where there is one.
    key = os.environ.get("REASONMAXXER_API_KEY") or os.environ.get("VLLM_API_KEY")
    own, nothing, demo = base.fingerprint, store.get("nothing").hash, store.get("demo").hash
    ways = (
        Way("base", config.model, "base", warm, own),
        Way("base, temperature 0", config.model, "base", 0.0, own),
        Way("gate without adapter", "nothing:gated", "gated", warm, nothing),
        Way("always", "demo", "always", warm, demo),
        Way("gated", "demo:gated", "gated", warm, demo),
    )
    with Verifier() as verifier:
        return [
            evaluate_url(
                Endpoint(url=f"{url}/v1", model=way.model, api_key=key),
                problems,
                SamplingOptions(
                    n=size.samples if way.temperature else 1,
                    temperature=way.temperature,
                    max_tokens=size.max_tokens,
                    seed=config.seed,
                ),
                verifier,
                mode=way.mode,
                source=source_name(config.problems) if config.problems else "miniature world",
                label=way.label,
                output=config.output / "answers",
                identity=way.weights,
            )
            for way in ways
        ]


def main() -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    end_as_asked()
    config = DemoConfig.begin()
    for client in ("httpx", "httpx2"):  # whichever of the two the openai client uses
        logging.getLogger(client).setLevel(logging.WARNING)
    with config.usage_errors():
        demo(config)


if __name__ == "__main__":
    main()
