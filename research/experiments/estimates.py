r"""Do estimates from base answers rank checkpoints as decoding does?

    python -m research.experiments.estimates --model models/tiny-qwen2
    python -m research.experiments.estimates --model BASE --problems train.jsonl \
        --heldout heldout.jsonl

Adapters are fitted at several learning rates, from sane to ruinous. Each of their checkpoints has
an estimate from the base's answers to the held-out problems; here it answers them itself, too. The
table says how far the two lie apart, and whether the rule of training/evaluation/
importance_sampling.py trusts the estimate. The agreement is also told of estimates that are divided
by their mean weight. A killed run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from adapters.files import write_json
from adapters.manifest import Gate
from benchmarks.report import print_table
from research.experiments.gate import make_problems
from training.config import Config
from training.evaluation import Evaluation, evaluate_generator
from training.evaluation.importance_sampling import MIN_EFFECTIVE, MIN_WEIGHT
from training.fit import fit
from training.fit_config import FitConfig
from training.generation import Applied, SamplingOptions, derive_seed
from training.provenance import machine
from training.run import Run

# What is held against decoding, and how its lines end.
ESTIMATORS = {"estimated": "", "normalised": ", divided by the mean weight"}


class EstimatesConfig(Config):
    """Settings of the experiment."""

    program: ClassVar[str] = "python -m research.experiments.estimates"

    model: str = "models/tiny-qwen2"
    problems: Path | None = Field(None, description="To train on; default: the miniature world's.")
    heldout: Path | None = Field(None, description="To score on; default: the miniature world's.")
    train: int = Field(240, ge=4, description="Problems to train on, where none are given.")
    questions: int = Field(300, ge=4, description="Problems to score on.")
    rollouts: int = Field(8, ge=2, description="Base answers to each, for the estimates.")
    samples: int = Field(4, ge=1, description="Answers to each of a decoded checkpoint.")
    learning_rates: list[float] = Field([1e-3, 1e-2], description="From sane to ruinous.")
    epochs: float = Field(3.0, gt=0)
    every: float = Field(0.25, gt=0, description="Checkpoints, in epochs.")
    fit: list[str] = Field([], description="Further flags of training.fit.")
    seed: int = 0
    output: Path = Path("runs/experiments/estimates")


class Pair(NamedTuple):
    """One checkpoint, estimated and decoded."""

    learning_rate: float
    checkpoint: str
    estimated: float
    estimated_stderr: float
    mean_weight: float
    effective: float
    trusted: bool
    decoded: float
    decoded_stderr: float

    @property
    def normalised(self) -> float:
        """The estimate, divided by its mean weight (self-normalised importance sampling)."""
        return self.estimated / self.mean_weight


def measure(config: EstimatesConfig) -> list[Pair]:
    """Fit at each learning rate and decode every checkpoint."""
    folder = config.output / Path(config.model).name
    problems = config.problems or make_problems(
        folder / "train.jsonl", 10 + config.seed, config.train, "train"
    )
    heldout = config.heldout or make_problems(
        folder / "heldout.jsonl", 20 + config.seed, config.questions, "train"
    )
    pairs = []
    for rate in config.learning_rates:
        settings = FitConfig.load(
            [
                *("--model", config.model, "--problems", str(problems), "--heldout", str(heldout)),
                *("--run-dir", str(folder / "fit"), "--output", str(folder / f"adapter-{rate:g}")),
                *("--seed", str(config.seed), "--optimizer.learning-rate", str(rate)),
                *("--optimizer.epochs", str(config.epochs)),
                *("--checkpoints.every", str(config.every)),
                *("--checkpoints.problems", str(config.questions)),
                *("--checkpoints.rollouts", str(config.rollouts)),
                *("--checkpoints.decoded", "1", "--checkpoints.samples", str(config.samples)),
                *("--gate.others", "[]"),
                *config.fit,
            ]
        )
        fit(settings)
        pairs += decode(settings, rate, json.loads((folder / "fit" / "report.json").read_text()))
    return pairs


def decode(config: FitConfig, rate: float, report: dict[str, Any]) -> list[Pair]:
    """Have every checkpoint of a finished fit answer its held-out problems."""
    gate = Gate(**report["gate"] | {"temperature": 1.0}, tokens=1)
    pairs = []
    with Run.open(config) as run, run.generator(adapter=True) as generator:
        config = run.config  # with the recipe
        options = SamplingOptions(
            n=config.checkpoints.samples,
            temperature=config.sampling.temperature,
            top_p=1.0,
            max_tokens=config.sampling.max_tokens,
            seed=derive_seed(config.seed, "decoded"),
        )
        asked = Evaluation(
            *(run.heldout, run.renderer, options, run.verifier), output=config.run_dir / "decoded"
        )
        trained = Path(report["training"])
        for label, one in report["estimates"].items():
            name = label.partition(" ")[0]
            applied = Applied.behind(trained / name, gate)
            result = evaluate_generator(generator, asked, applied, f"{rate:g} {name}")
            pairs.append(
                Pair(
                    *(rate, name, one["pass@1"], one["stderr"]),
                    *(one["mean_weight"], one["effective"], one["trusted"]),
                    *(result.pass_at_1.value, result.stderr),
                )
            )
    return pairs


def agreement(pairs: list[Pair], estimator: str) -> dict[str, float]:
    """Rank correlation, root mean square difference, mean difference, for one of ESTIMATORS."""
    estimated, decoded = (np.array([getattr(p, f) for p in pairs]) for f in (estimator, "decoded"))
    ranks = [ranked(values) for values in (estimated, decoded)]
    difference = estimated - decoded
    return {
        "checkpoints": len(pairs),
        "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        if len(pairs) > 2
        else float("nan"),
        "rms_difference": float(np.sqrt((difference**2).mean())),
        "mean_difference": float(difference.mean()),
        "stderr_of_decoding": float(np.mean([p.decoded_stderr for p in pairs])),
    }


def ranked(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, [N]; equal values share the mean of theirs."""
    below, equal = (compare(values, values[:, None]).sum(axis=1) for compare in (np.less, np.equal))
    return below + (equal + 1) / 2


def main() -> None:
    """Command line."""
    config = EstimatesConfig.begin()
    pairs = measure(config)
    print_table(
        ["rate", "checkpoint", "estimated", "decoded", "mean weight", "effective", "trusted"],
        [
            [
                f"{p.learning_rate:g}",
                p.checkpoint,
                f"{p.estimated:.3f} ± {p.estimated_stderr:.3f}",
                f"{p.decoded:.3f} ± {p.decoded_stderr:.3f}",
                f"{p.mean_weight:.3f}",
                f"{p.effective:.2f}",
                "yes" if p.trusted else "no",
            ]
            for p in pairs
        ],
    )
    groups = {"all": pairs, "trusted": [p for p in pairs if p.trusted]}
    groups |= {
        f"rate {r:g}": [p for p in pairs if p.learning_rate == r] for r in config.learning_rates
    }
    found = {
        f"{name}{ending}": agreement(group, estimator)
        for estimator, ending in ESTIMATORS.items()
        for name, group in groups.items()
        if group
    }
    for name, values in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    path = config.output / Path(config.model).name / "report.json"
    write_json(
        path,
        {
            "machine": machine(),
            "settings": config.values(),
            "rule": {"mean_weight": MIN_WEIGHT, "effective": MIN_EFFECTIVE},
            "agreement": found,
            "pairs": [pair._asdict() for pair in pairs],
        },
    )
    print(path)


if __name__ == "__main__":
    main()
