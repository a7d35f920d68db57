"""Cells -> tables. A score is the mean over the problems of all benchmarks; its standard error has
both sources, problems and seeds; gains are paired by problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.miniature.benchmarks import BENCHMARKS
from research.paper.cells import Cell, CellStore
from research.paper.measure import all_scores, total
from research.paper.plan import COOLED, METHOD, WARM
from training.evaluation.statistics import Estimate, Floats, over_seeds

Answers = dict[str, Any]  # benchmark -> scores and the rest


class Results:
    """The cells that are there."""

    def __init__(self, cells: Sequence[Cell], store: CellStore) -> None:
        self.cells = list(cells)
        self.found = {cell: result for cell in cells if (result := store.read(cell)) is not None}

    @property
    def bases(self) -> list[str]:
        """Those planned, in their order."""
        return list(dict.fromkeys(cell.base for cell in self.cells))

    def of(self, base: str, kind: str, variant: str = "") -> list[dict[str, Any]]:
        """The results of one thing, a seed each."""
        return list(self.by_seed(base, kind, variant).values())

    def by_seed(self, base: str, kind: str, variant: str) -> dict[int | None, dict[str, Any]]:
        """The same, by seed."""
        return {
            cell.seed: result
            for cell, result in self.found.items()
            if (cell.base, cell.kind, cell.variant) == (base, kind, variant)
        }

    def variants(self, base: str) -> list[str]:
        """Of its fits, those that are there, in the plan's order."""
        made = (c.variant for c in self.cells if c in self.found and c.base == base)
        return [name for name in dict.fromkeys(made) if self.of(base, "fit", name)]


class Row(NamedTuple):
    """One way to answer."""

    label: str
    score: Estimate
    gains: Floats | None  # over the base, [seeds, problems]
    seeds: int
    benchmarks: dict[str, float]
    tokens: float | None = None  # generated to make it, mean over seeds

    @property
    def gain(self) -> Estimate | None:
        """Over the base."""
        return None if self.gains is None else over_seeds(self.gains)

    def cells(self) -> list[str]:
        """As a line of a Markdown table."""
        return [
            self.label,
            *(f"{self.benchmarks[name]:.3f}" for name in BENCHMARKS),
            str(self.score),
            self.gain.signed if self.gain else "",
            "" if self.tokens is None else f"{self.tokens / 1e6:.3f} M",
            str(self.seeds) if self.gain else "",
        ]


HEADER = ["", *BENCHMARKS, "all", "gain", "tokens", "seeds"]


def row(
    label: str, seeds: Sequence[Answers], base: Answers | None, tokens: Sequence[float] = ()
) -> Row:
    """Of the answers of each seed."""
    scores = [all_scores(answers) for answers in seeds]
    means = {
        name: float(np.mean([answers[name]["scores"] for answers in seeds])) for name in BENCHMARKS
    }
    gains = None if base is None else np.subtract(scores, all_scores(base))
    mean_tokens = float(np.mean(tokens)) if tokens else None
    return Row(label, over_seeds(scores), gains, len(seeds), means, mean_tokens)


class Way(NamedTuple):
    """A line of the main table: what to show of which cells."""

    label: str
    kind: str
    variant: str
    key: str  # of the answers
    against: str | None = None  # the base's answers they are held against; None: their engine's


GRPO, OURS, COOLER = "GRPO", "**ReasonMaxxer, gated**", "**with a temperature of the gate**"
# Where a gate has a temperature, the recipe's own or not.
ALONE = {OURS: "the base behind the gate", COOLER: "the base behind that gate"}
WAYS = (
    Way(GRPO, "grpo", "", "grpo"),
    Way(OURS, "fit", METHOD, "gated"),
    Way("the same, served by vLLM", "fit", METHOD, "served", "vllm"),
    Way("at every step", "fit", METHOD, "always"),
    Way("gate opened by lot", "fit", METHOD, "by lot", "transformers"),
    Way("the same, its gate without a temperature", "fit", METHOD, "warm"),
    Way(ALONE[OURS], "fit", METHOD, "base"),
    Way("fitted at random positions, gated", "fit", "random-gate", "gated"),
    Way("fitted where the gate is shut, gated", "fit", "shut-gate", "gated"),
    Way("fitted for random rewards, gated", "fit", "random-reward", "gated"),
    Way("**without a temperature of the gate**", "fit", WARM, "gated"),
    Way("at random positions, without it", "fit", f"{WARM}-random-gate", "gated"),
    Way("for random rewards, without it", "fit", f"{WARM}-random-reward", "gated"),
    Way(COOLER, "fit", COOLED, "gated"),
    Way("the same with the temperature, served by vLLM", "fit", COOLED, "served", "vllm"),
    Way("the same adapters without it", "fit", COOLED, "warm"),
    Way(ALONE[COOLER], "fit", COOLED, "base"),
    Way("GRPO, greedy", "greedy", "grpo", "greedy", "greedy"),
    Way("ReasonMaxxer, gated, greedy", "greedy", METHOD, "greedy", "greedy"),
    Way("without a temperature, greedy", "greedy", WARM, "greedy", "greedy"),
)


def main_rows(results: Results, base: str) -> dict[str, Row]:
    """Label -> row: the base, GRPO, the method and its controls; what is there of them."""
    made = results.of(base, "base")
    if not made:
        return {}
    plain = made[0]["transformers"]
    rows = {"base": row("base", [plain], None)}
    rows["base, greedy"] = row("base, greedy", [made[0]["greedy"]], plain)
    for way in WAYS:
        seeds = [one for one in results.of(base, way.kind, way.variant) if way.key in one]
        if seeds:
            against = made[0][way.against or seeds[0]["engine"]]
            tokens = [one["cost"]["tokens"] for one in seeds if "cost" in one]
            rows[way.label] = row(way.label, [one[way.key] for one in seeds], against, tokens)
    return rows


class Ablation(NamedTuple):
    """One change to the recipe."""

    row: Row
    change: Estimate | None  # of pass@1 by it, paired by problem, on the seeds that both have

    def cells(self) -> list[str]:
        """As a line of a Markdown table."""
        *scores, tokens, seeds = self.row.cells()
        return [*scores, self.change.signed if self.change else "", tokens, seeds]


ABLATION_HEADER = [*HEADER[:-2], "to the recipe", *HEADER[-2:]]


def ablations(results: Results, base: str) -> list[Ablation]:
    """Each variant of fit, gated."""
    made = results.of(base, "base")
    if not made:
        return []
    recipe = results.by_seed(base, "fit", METHOD)
    rows = []
    for variant in results.variants(base):
        seeds = results.by_seed(base, "fit", variant)
        fits = list(seeds.values())
        against = made[0][fits[0]["engine"]]
        tokens = [one["cost"]["tokens"] for one in fits]
        changes = [
            np.subtract(all_scores(seeds[seed]["gated"]), all_scores(recipe[seed]["gated"]))
            for seed in seeds.keys() & recipe.keys()
        ]
        rows.append(
            Ablation(
                row(variant, [one["gated"] for one in fits], against, tokens),
                over_seeds(changes) if changes and variant != METHOD else None,
            )
        )
    return rows


def gate_rate(answers: Answers) -> float:
    """Gated tokens / generated tokens."""
    return total(answers, "gated") / total(answers, "tokens")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(found: dict[str, float] | None, form: Callable[[float], str]) -> str:
    """value ± standard error, of a footprint's figure."""
    return f"{form(found['value'])} ± {form(found['stderr'])}" if found else "-"
