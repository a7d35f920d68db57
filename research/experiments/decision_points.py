"""Does fitting at decision points alone cost anything? What do its variants bring?

    python -m research.experiments.decision_points                       (about an hour on one core)
    python -m research.experiments.decision_points --seeds 0 --ways all,decisions

Every way of fitting sees the same problems and, but for rounds, the same rollouts; `all` is the
paper's own fit. Each adapter answers the same 500 held-out problems behind the gate, four times at
T 0.6 and once greedily, beside the base. Differences are paired by problem and averaged over seeds.
The answers are kept, so a killed run goes on; the tables and report.json say what came of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_json
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from benchmarks.report import print_table
from research.experiments.gate import make_problems
from research.fits import gate_of, run_module
from training.config import Config
from training.evaluation import Evaluation, Result, evaluate_generator
from training.evaluation.statistics import over_seeds
from training.generation import Applied, SamplingOptions, longest_sequence, open_generator
from training.grading import Verifier
from training.problems import load_problems
from training.provenance import machine

MLP = ("--lora.target-modules", "q_proj,o_proj,gate_proj,up_proj,down_proj")
WAYS: dict[str, tuple[str, ...]] = {
    "all": ("--objective.positions", "all"),
    "decisions": (),
    "sequence": ("--objective.name", "sequence"),
    "mlp": MLP,
    "two-rounds": ("--rounds", "2"),
    "three-rounds": ("--rounds", "3"),
    "random-gate": ("--selection.gate", "random"),
    "random-reward": ("--selection.reward", "random"),
}
SERVED_RANK = 8


class PointsConfig(Config):
    """Settings of the experiment."""

    program: ClassVar[str] = "python -m research.experiments.decision_points"

    models: list[Path] = Field(
        [Path("models/tiny-qwen2"), Path("models/tiny-llama")], description="Miniature bases."
    )
    ways: list[str] = Field(list(WAYS), description=f"Some of {', '.join(WAYS)}.")
    seeds: list[int] = Field([0, 1, 2], description="Seeds of the fits and their problems.")
    train: int = Field(240, ge=20, description="Problems given to each fit.")
    heldout: int = Field(100, ge=4, description="Problems that choose the checkpoint.")
    questions: int = Field(500, ge=10, description="Test problems.")
    samples: int = Field(4, ge=1, description="Answers per problem at `temperature`.")
    temperature: float = Field(0.6, gt=0)
    output: Path = Path("runs/experiments/decision_points")

    @field_validator("ways")
    @classmethod
    def _known(cls, ways: list[str]) -> list[str]:
        unknown = sorted(set(ways) - WAYS.keys())
        if unknown:
            raise ValueError(f"{unknown[0]} is none of {', '.join(WAYS)}")
        return ways


def fit_all(config: PointsConfig, model: Path, seed: int) -> dict[str, Path]:
    """Way -> its adapter, on one set of problems."""
    folder = config.output / model.name / f"seed{seed}"
    # 10 and up: seeds 0 and 1 are the corpus' own, whose problems the base has seen.
    problems = make_problems(folder / "train.jsonl", 10 + seed, config.train, "train")
    heldout = make_problems(folder / "heldout.jsonl", 20 + seed, config.heldout, "train")
    for way in config.ways:
        if not (folder / way / "manifest.json").exists():
            run_module(
                *("training.fit", "--model", str(model), "--problems", str(problems)),
                *("--heldout", str(heldout), "--output", str(folder / way)),
                *("--run-dir", str(folder / "fit"), "--seed", str(seed), *WAYS[way]),
            )
            for file in ("seconds", "report"):  # the next fit writes its own
                (folder / "fit" / f"{file}.json").replace(folder / f"{way}-{file}.json")
    return {way: folder / way for way in config.ways}


def ask(
    config: PointsConfig, model: Path, adapters: dict[int, dict[str, Path]]
) -> dict[str, dict[str, list[Result]]]:
    """Decoding ("sampled", "greedy") -> way -> a result for each seed; "base" among the ways."""
    test = make_problems(config.output / "test.jsonl", 1, config.questions, "heldout")
    problems = load_problems(str(test))
    base = BaseCheckpoint.open(str(model))
    recipe = recipe_for(base)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    longest = max(len(renderer.token_ids(problem.problem)) for problem in problems)
    found: dict[str, dict[str, list[Result]]] = {"sampled": {}, "greedy": {}}
    with (
        Verifier() as verifier,
        open_generator(
            str(base.folder),
            engine="vllm",
            max_rank=SERVED_RANK,
            gated=True,
            max_model_len=longest_sequence(str(base.folder), longest, recipe.sampling.max_tokens),
        ) as engine,
    ):
        for decoding, temperature, samples in (
            ("sampled", config.temperature, config.samples),
            ("greedy", 0.0, 1),
        ):
            options = SamplingOptions(
                n=samples,
                temperature=temperature,
                top_p=1.0,
                max_tokens=recipe.sampling.max_tokens,
            )

            asked = Evaluation(
                *(problems, renderer, options, verifier),
                output=config.output / model.name / "answers",
                identity=base.fingerprint,
            )

            def result(applied: Applied | None, asked: Evaluation = asked) -> Result:
                return evaluate_generator(engine, asked, applied)

            found[decoding]["base"] = [result(None)] * len(config.seeds)
            for way in config.ways:
                found[decoding][way] = [
                    result(Applied.behind(fits[way], gate_of(fits[way])))
                    for fits in adapters.values()
                ]
    return found


def report(config: PointsConfig, model: Path, found: Any) -> dict[str, Any]:
    """Print a table; return the figures."""
    rows, lines = [], {}
    reference = config.ways[0]
    for way in ("base", *config.ways):
        line: dict[str, Any] = {}
        cells = [way]
        for decoding, results in found.items():
            mine, base, first = (results[one] for one in (way, "base", reference))
            score = over_seeds([one.scores for one in mine])
            gain, to_first = (
                over_seeds([a.scores - b.scores for a, b in zip(mine, other, strict=True)])
                for other in (base, first)
            )
            cells += [str(score)]
            cells += ["" if way == "base" else gain.signed]
            cells += ["" if way in ("base", reference) else to_first.signed]
            line[decoding] = {
                **{"pass@1": score.value, "stderr": score.stderr},
                **{"gain": gain.value, "gain_stderr": gain.stderr},
                **{f"to {reference}": to_first.value, "to_stderr": to_first.stderr},
                "tokens": [one.mean_tokens.value for one in mine],
                "gate_rate": [one.gate_rate.value for one in mine] if way != "base" else [],
            }
        if way != "base":
            folder = config.output / model.name
            line["seconds"] = [
                json.loads((folder / f"seed{seed}" / f"{way}-seconds.json").read_text())
                for seed in config.seeds
            ]
            trained = [sum(v for k, v in one.items() if "train" in k) for one in line["seconds"]]
            cells.append(" ".join(f"{seconds:.0f}" for seconds in trained))
        rows.append([*cells, ""][:8])
        lines[way] = line
    print(f"\n{model.name}: {config.questions} problems, seeds {config.seeds}\n")
    titles = ["", f"T {config.temperature:g}", "gain", f"to {reference}"]
    print_table([*titles, "greedy", "gain", f"to {reference}", "train s"], rows)
    return lines


def main() -> None:
    """Command line."""
    config = PointsConfig.begin()
    figures = {}
    for model in config.models:
        adapters = {seed: fit_all(config, model, seed) for seed in config.seeds}
        figures[model.name] = report(config, model, ask(config, model, adapters))
        path = config.output / "report.json"
        write_json(path, {"machine": machine(), "settings": config.values(), "models": figures})
    print(f"\n{path}")


if __name__ == "__main__":
    main()
