"""What the method gains on a real model, on each of several tasks, beside its controls.

    python -m research.experiments.gains --model Qwen/Qwen2.5-Coder-0.5B-Instruct --seeds 0,1,2 \\
        --problems reasoning_gym:chain_sum+reasoning_gym:gcd --limit 400 \\
        --tests reasoning_gym:chain_sum,seed=1,count=300 --tests gsm8k --max-tokens 300

Each seed fits four adapters on one set of rollouts: for the gate, always-on, at random positions
and for random rewards. Each is asked the test problems, beside the base at the temperature of
sampling, the base at temperature 0, and the base behind the same gate without an adapter, whose
only effect is the gate's temperature. Differences are paired by problem; over seeds their standard
error has both sources. The test problems are asked once: nothing is chosen by them.

The base's pass over the rollouts is shared too, through the disk. `--share-rollouts` shares both
between the seeds, which then differ in training alone: with a real model on a CPU, sampling and
that pass take most of the time.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from adapters.adapter import AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_json
from adapters.manifest import Manifest
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from benchmarks.report import print_table
from training.evaluation import Result, evaluate_generator
from training.evaluation.statistics import Estimate, over_seeds
from training.generation import Applied, SamplingOptions, open_generator
from training.grading import Verifier
from training.hf_model import open_base
from training.problems import load_problems, source_name
from training.problems.settings import ProblemsConfig
from training.provenance import machine
from training.stages.publish import publish_zeros

# Name of a fit -> flags of `training.fit`. Those of one mode share their rollouts.
FITS: dict[str, tuple[str, ...]] = {
    "gated": (),
    "always": ("--mode", "always"),
    "random positions": ("--selection.gate", "random"),
    "random rewards": ("--selection.reward", "random"),
}
ZEROS = "zeros"
# Against which lines of the table differences are shown.
AGAINST = ("base", "base, temperature 0", "base behind the gate")


class GainsConfig(ProblemsConfig):
    """Settings of the experiment."""

    program: ClassVar[str] = "python -m research.experiments.gains"

    model: str = Field(description="Base: a folder or a hub id.")
    problems: str = Field(description="Source of the problems that are fitted on.")
    limit: int = Field(400, ge=20, description="How many of them.")
    tests: list[str] = Field(min_length=1, description="Sources of test problems, one for a task.")
    questions: int | None = Field(None, ge=1, description="Problems of each; default: all.")
    samples: int = Field(1, ge=1, description="Answers per problem.")
    max_tokens: int = Field(512, ge=1, description="Longest answer, in fits too.")
    seeds: list[int] = Field([0, 1, 2], description="Of the fits.")
    share_rollouts: bool = Field(
        False, description="Sample once, with the first seed; the others are of training alone."
    )
    only: list[str] = Field(
        list(FITS), description=f"Fits to make: some of {', '.join(FITS)}; gated is needed."
    )
    fit_config: Path | None = Field(None, description="YAML with more settings of the fits.")
    output: Path = Path("runs/experiments/gains")


class Row(NamedTuple):
    """One line of a table."""

    label: str
    fit: str | None  # None: the base alone
    gated: bool = False
    greedy: bool = False


ROWS = (
    Row("base", None),
    Row("base, temperature 0", None, greedy=True),
    Row("base behind the gate", ZEROS, gated=True),
    Row("always-on, fitted for it", "always"),
    Row("gated", "gated", gated=True),
    Row("gated, temperature 0", "gated", gated=True, greedy=True),
    Row("fitted for the gate, always-on", "gated"),
    Row("fitted at random positions, gated", "random positions", gated=True),
    Row("fitted for random rewards, gated", "random rewards", gated=True),
)


def fit_all(config: GainsConfig, seed: int, base: BaseCheckpoint) -> dict[str, Path]:
    """Fit -> its adapter; those that change nothing included."""
    folder = config.output / f"seed{seed}"
    first = config.seeds[0] if config.share_rollouts else seed
    run_dir = config.output / f"seed{first}" / "fit"
    for name in config.only:
        arguments = [
            *("training.fit", "--model", config.model, "--problems", config.problems),
            *("--limit", str(config.limit), "--seed", str(first), "--training-seed", str(seed)),
            *("--output", str(folder / name.replace(" ", "-")), "--run-dir", str(run_dir)),
            *("--sampling.max-tokens", str(config.max_tokens), "--base-cache.keep", *FITS[name]),
            *(("--config", str(config.fit_config)) if config.fit_config else ()),
            *(("--data-dir", str(config.data_dir)) if config.data_dir else ()),
        ]
        subprocess.run([sys.executable, "-m", *arguments], check=True)
    found = {name: folder / name.replace(" ", "-") for name in config.only}
    if not (folder / ZEROS).exists():
        publish_zeros(folder / ZEROS, found["gated"], ZEROS, base)
    return found | {ZEROS: folder / ZEROS}


def ask_all(
    config: GainsConfig, adapters: dict[int, dict[str, Path]], base: BaseCheckpoint
) -> dict[str, dict[str, list[Result]]]:
    """Test source -> label of a row -> results, one a seed; of the base alone, the same for all."""
    recipe = recipe_for(base)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    tests = {
        source: load_problems(source, limit=config.questions, data_dir=config.data_dir)
        for source in config.tests
    }
    longest = max(len(renderer.token_ids(one.problem)) for ps in tests.values() for one in ps)
    folders = [folder for fits in adapters.values() for folder in fits.values()]
    rank = max(AdapterVersion.read(folder, folder.name).rank for folder in folders)
    with (
        Verifier() as verifier,
        open_generator(
            str(base.folder), max_rank=rank, gated=True, max_model_len=longest + config.max_tokens
        ) as generator,
    ):

        def ask(source: str, row: Row, fits: dict[str, Path]) -> Result:
            warm = 0.0 if row.greedy else recipe.sampling.temperature
            return evaluate_generator(
                generator,
                renderer,
                tests[source],
                SamplingOptions(
                    n=1 if row.greedy else config.samples,
                    temperature=warm,
                    max_tokens=config.max_tokens,
                ),
                verifier,
                applied(row, fits),
                source=source_name(source),
                label=row.label,
                output=config.output / "answers",  # the base answers once for all seeds
                identity=base.fingerprint,
            )

        first = next(iter(adapters.values()))
        return {
            source: {
                row.label: [ask(source, row, fits) for fits in adapters.values()]
                for row in ROWS
                if row.fit is None or row.fit in first
            }
            for source in tests
        }


def applied(row: Row, fits: dict[str, Path]) -> Applied | None:
    """Where the adapter of a row runs; None: the base answers."""
    if row.fit is None:
        return None
    folder = fits[row.fit]
    return Applied.behind(folder, Manifest.read(folder).gate) if row.gated else Applied(folder)


def difference(results: Sequence[Result], others: Sequence[Result]) -> Estimate:
    """Mean over seeds of the paired difference in pass@1."""
    return over_seeds([a.scores - b.scores for a, b in zip(results, others, strict=True)])


def report(source: str, found: dict[str, list[Result]]) -> dict[str, Any]:
    """Print one test's table; return its figures."""
    rows, figures = [], {}
    for label, results in found.items():
        score = over_seeds([one.scores for one in results])
        gains = {
            other: difference(results, found[other])
            for other in AGAINST
            if other != label and other in found
        }
        rate = sum(one.gate_rate.value for one in results) / len(results)
        tokens = sum(one.mean_tokens.value for one in results) / len(results)
        boxed = sum(one.boxed_rate.value for one in results) / len(results)
        rows.append(
            [
                label,
                str(score),
                *(gains[other].signed if other in gains else "" for other in AGAINST),
                *(f"{boxed:.2f}", f"{tokens:.0f}", f"{rate:.3f}" if rate else ""),
            ]
        )
        figures[label] = {
            **{"pass@1": score.value, "stderr": score.stderr, "each_seed": each(results)},
            "gains": {other: {"value": g.value, "stderr": g.stderr} for other, g in gains.items()},
            **{"boxed": boxed, "tokens": tokens, "gate_rate": rate},
        }
    first = next(iter(found.values()))[0]
    print(f"\n{source}: {first.n} problems x {first.samples}, {len(results)} seeds\n")
    against = [f"against {other}" for other in AGAINST]
    print_table(["", "pass@1", *against, "boxed", "tokens", "gate rate"], rows)
    return figures


def each(results: Sequence[Result]) -> list[float]:
    """pass@1 of each seed."""
    return [one.pass_at_1.value for one in results]


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    config = GainsConfig.load()
    with config.usage_errors():
        base = open_base(config.model)
        adapters = {seed: fit_all(config, seed, base) for seed in config.seeds}
        figures = {
            source: report(source, found)
            for source, found in ask_all(config, adapters, base).items()
        }
    settings = config.model_dump(mode="json", exclude={"config", "output", "data_dir"})
    path = config.output / "report.json"
    write_json(path, {"machine": machine(), "settings": settings, "tests": figures})
    print(f"\n{path}")


if __name__ == "__main__":
    main()
