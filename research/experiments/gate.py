"""Does the gate make the correction better, and is it the entropy that does it?

    python -m research.experiments.gate                 (about 30 minutes on one core)
    python -m research.experiments.gate --seeds 0,1 --questions 300

For each seed an adapter is fitted three times on the same rollouts: as the method says, at random
positions (as many), and for random rewards (at the base's pass rate). All of them answer the same
held-out problems: at every step, behind the entropy gate, and behind a gate that opens at random at
the same rate. The answers are kept, so that a killed run goes on; the table and report.json say
what came of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_json
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from benchmarks.report import print_table
from research.fits import gate_of, run_module
from training.config import Config
from training.evaluation import Evaluation, Result, evaluate_generator
from training.evaluation.statistics import over_seeds
from training.generation import Applied, SamplingOptions, longest_sequence, open_generator
from training.grading import Verifier
from training.problems import load_problems
from training.provenance import machine

FITS = {
    "method": (),
    "random-gate": ("--selection.gate", "random"),
    "random-reward": ("--selection.reward", "random"),
}


class Row(NamedTuple):
    """One line of the table: a fit, and how it is applied."""

    label: str
    fit: str
    mode: str  # always, gated, random


ROWS = (
    Row("always", "method", "always"),
    Row("gated", "method", "gated"),
    Row("gate opened at random", "method", "random"),
    Row("fitted at random positions, gated", "random-gate", "gated"),
    Row("fitted at random positions, gate opened at random", "random-gate", "random"),
    Row("fitted for random rewards, gated", "random-reward", "gated"),
)


class GateConfig(Config):
    """Settings of the experiment."""

    program: ClassVar[str] = "python -m research.experiments.gate"

    model: Path = Field(Path("models/tiny-qwen2"), description="A miniature base.")
    seeds: list[int] = Field([0, 1, 2], description="Seeds of the fits and their problems.")
    train: int = Field(400, ge=20, description="Problems given to each fit.")
    questions: int = Field(1000, ge=10, description="Held-out problems.")
    samples: int = Field(2, ge=1, description="Answers per problem.")
    temperatures: list[float] = Field([0.6, 1.0])
    output: Path = Path("runs/experiments/gate")


def make_problems(path: Path, seed: int, count: int, split: str) -> Path:
    """Problems of the miniature world, JSONL."""
    run_module(
        *("research.miniature", "problems", "--seed", str(seed), "--count", str(count)),
        *("--split", split, "--out", str(path)),
    )
    return path


def fit_all(config: GateConfig, seed: int) -> dict[str, Path]:
    """Fit -> its adapter, on one set of rollouts."""
    folder = config.output / f"seed{seed}"
    # 10 and up: seeds 0 and 1 are the corpus' own, whose problems the base has seen.
    problems = make_problems(folder / "train.jsonl", 10 + seed, config.train, "train")
    for name, flags in FITS.items():
        run_module(
            *("training.fit", "--model", str(config.model), "--problems", str(problems)),
            *("--output", str(folder / name), "--run-dir", str(folder / "fit")),
            *("--seed", str(seed), *flags),
        )
    return {name: folder / name for name in FITS}


def ask(
    config: GateConfig, adapters: dict[int, dict[str, Path]]
) -> dict[float, list[list[Result]]]:
    """Temperature -> results: of the base on both engines, then of each of ROWS, one a seed."""
    heldout = make_problems(config.output / "heldout.jsonl", 1, config.questions, "heldout")
    problems = load_problems(str(heldout))
    base = BaseCheckpoint.open(str(config.model))
    recipe = recipe_for(base)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    longest = max(len(renderer.token_ids(problem.problem)) for problem in problems)
    found: dict[float, list[list[Result]]] = {}
    with (
        Verifier() as verifier,
        open_generator(
            str(base.folder),
            engine="vllm",
            max_rank=recipe.lora.rank,
            gated=True,
            max_model_len=longest_sequence(str(base.folder), longest, recipe.sampling.max_tokens),
        ) as engine,
        open_generator(str(base.folder), engine="transformers") as transformers,
    ):
        for temperature in config.temperatures:
            options = SamplingOptions(
                n=config.samples,
                temperature=temperature,
                top_p=recipe.sampling.top_p,
                max_tokens=recipe.sampling.max_tokens,
            )

            asked = Evaluation(
                *(problems, renderer, options, verifier),
                output=config.output / "answers",
                identity=base.fingerprint,
            )

            def result(applied: Applied | None, asked: Evaluation = asked) -> Result:
                random = applied is not None and applied.random_rate is not None
                return evaluate_generator(transformers if random else engine, asked, applied)

            # The random gate runs in transformers: its base answers there too.
            other = asked._replace(identity=f"{base.fingerprint} transformers")
            there = evaluate_generator(transformers, other, label="base, transformers")
            found[temperature] = [[result(None), there]]
            found[temperature] += [
                [result(way(fits[row.fit], row.mode)) for fits in adapters.values()] for row in ROWS
            ]
    return found


def way(adapter: Path, mode: str) -> Applied:
    """How the adapter runs in `mode`; the random gate opens as often as its entropy gate did."""
    if mode == "random":
        return Applied.at_random(adapter, gate_of(adapter))
    return Applied.behind(adapter, gate_of(adapter)) if mode == "gated" else Applied(adapter)


def report(config: GateConfig, found: dict[float, list[list[Result]]]) -> dict[str, Any]:
    """Print a table for each temperature; return the figures."""
    figures: dict[str, Any] = {}
    for temperature, (bases, *others) in found.items():
        rows = [[base.label, str(base.pass_at_1), "", "", ""] for base in bases]
        lines: dict[str, Any] = {base.label: base.report() for base in bases}
        for row, results in zip(ROWS, others, strict=True):
            base = bases[row.mode == "random"]
            score = over_seeds([one.scores for one in results])
            gain = over_seeds([one.scores - base.scores for one in results])
            each = [one.against(base).value for one in results]
            rate = np.mean([one.gate_rate.value for one in results]) if row.mode != "always" else 1
            rows.append(
                [
                    row.label,
                    str(score),
                    gain.signed,
                    " ".join(f"{value:+.3f}" for value in each),
                    f"{rate:.3f}",
                ]
            )
            lines[row.label] = {
                **{"pass@1": score.value, "stderr": score.stderr},
                **{"gain": gain.value, "gain_stderr": gain.stderr, "each_seed": each},
                "gate_rate": float(rate),
            }
        print(f"\nT {temperature:g}, {base.n} problems x {base.samples}, seeds {config.seeds}\n")
        print_table(["", "pass@1", "gain", "of each seed", "gate rate"], rows)
        figures[f"{temperature:g}"] = lines
    return figures


def main() -> None:
    """Command line."""
    config = GateConfig.begin()
    adapters = {seed: fit_all(config, seed) for seed in config.seeds}
    figures = report(config, ask(config, adapters))
    path = config.output / "report.json"
    write_json(path, {"machine": machine(), "settings": config.values(), "temperatures": figures})
    print(f"\n{path}")


if __name__ == "__main__":
    main()
