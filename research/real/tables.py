"""Cells -> rows: the score of each way to answer on each task, and its differences.

A score is a mean over problems; over seeds its standard error has both sources. Differences are
paired by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from research.paper.cells import Cell, CellStore
from research.real import plan
from training.evaluation.statistics import Estimate, Floats, over_seeds, ratio, ratio_over_seeds

BASE_ROW, GREEDY_ROW, ALONE_ROW, GATED_ROW = (
    "base",
    "base, greedy",
    "base behind the gate",
    "**gated**",
)
VOTE_ROW, GATED_GREEDY_ROW = "base, self-consistency", "gated, greedy"
GRPO_ROW = "GRPO with LoRA"


class Way(NamedTuple):
    """A line of a table: what to show of which cells."""

    label: str
    kind: str
    variant: str
    key: str  # of the answers


WAYS = (
    Way(BASE_ROW, plan.BASE, "", "base"),
    Way(GREEDY_ROW, plan.GREEDY, "", "greedy"),
    Way(VOTE_ROW, plan.BASE, "", "vote"),
    Way(ALONE_ROW, plan.ALONE, plan.METHOD, "alone"),
    Way("base, guided at decision points", plan.GUIDED, plan.METHOD, "guided"),
    Way(GATED_ROW, plan.FIT, plan.METHOD, "gated"),
    Way(GATED_GREEDY_ROW, plan.GATED_GREEDY, plan.METHOD, "gated greedy"),
    Way("the same adapters, always-on", plan.ALWAYS, plan.METHOD, "always"),
    Way("fitted at random positions", plan.FIT, "random-positions", "gated"),
    Way("fitted where the gate is shut", plan.FIT, "shut-gate", "gated"),
    Way("fitted for random rewards", plan.FIT, "random-rewards", "gated"),
    Way("fitted on right answers alone", plan.FIT, "right-answers-alone", "gated"),
    Way("rank 1", plan.FIT, "rank-1", "gated"),
    Way("o_proj alone", plan.FIT, "o-only", "gated"),
    Way("fitted at every position, always-on", plan.PAPER, "", "always"),
    Way("supervised, on the references", plan.SFT, "", "always"),
    Way(GRPO_ROW, plan.GRPO, "", "always"),
)
AGAINST = (BASE_ROW, GREEDY_ROW, ALONE_ROW)


class Results:
    """The cells of one base that are there.

    Attributes:
        tasks: those that are measured; empty: the rule was not applied yet.
    """

    def __init__(self, cells: Sequence[Cell], store: CellStore, tasks: Sequence[str]) -> None:
        self.cells, self.tasks = list(cells), list(tasks)
        self.found = {cell: result for cell in cells if (result := store.read(cell)) is not None}

    def of(self, kind: str, variant: str = "") -> list[dict[str, Any]]:
        """The results of one thing, a seed each."""
        return [
            result
            for cell, result in self.found.items()
            if (cell.kind, cell.variant) == (kind, variant)
        ]

    def scores(self, way: Way, task: str) -> Floats | None:
        """[seeds, problems]; None: not measured."""
        return self.column(way, "", task)

    def column(self, way: Way, what: str, task: str) -> Floats | None:
        """The same of another figure of each answer: correct, boxed, tokens."""
        key = f"{way.key}/{what}" if what else way.key
        seeds = [
            one[key][task]["scores"]
            for one in self.of(way.kind, way.variant)
            if task in one.get(key, {})
        ]
        return np.array(seeds, dtype=np.float64) if seeds else None


class Line(NamedTuple):
    """One way to answer, on one task."""

    label: str
    score: Estimate
    seeds: int
    gains: dict[str, Estimate]  # against each of AGAINST that was measured
    finished: Estimate | None  # right among the answers that have a final answer
    boxed: float | None
    tokens: float | None  # mean length of an answer
    matched: Estimate | None  # gain over the base among answers as long as the base's


def lines(results: Results, task: str) -> dict[str, Line]:
    """Label -> line; what was measured of `WAYS`."""
    scores = {way.label: found for way in WAYS if (found := results.scores(way, task)) is not None}
    return {
        way.label: Line(
            way.label,
            over_seeds(scores[way.label]),
            len(scores[way.label]),
            {
                other: over_seeds(scores[way.label] - scores[other].mean(axis=0))
                for other in AGAINST
                if other in scores and other != way.label
            },
            finished(results, way, task),
            _mean(results.column(way, "boxed", task)),
            _mean(results.column(way, "tokens", task)),
            length_matched(results, way, task),
        )
        for way in WAYS
        if way.label in scores
    }


def beyond(results: Results, task: str, label: str, share: float, other: str) -> Estimate:
    """The gain of `label` over the base beyond `share` of the gain of `other`, paired by problem.

    Raises:
        KeyError: one of them, or the base, was not measured.
    """
    scores = {way.label: results.scores(way, task) for way in WAYS}
    base, one, rival = (scores[name] for name in (BASE_ROW, label, other))
    if base is None or one is None or rival is None:
        raise KeyError(f"{task}: {label} or {other} was not measured")
    plain = base.mean(axis=0)
    return over_seeds(one - plain - share * (rival.mean(axis=0) - plain))


def _mean(values: Floats | None) -> float | None:
    return None if values is None else float(values.mean())


def finished(results: Results, way: Way, task: str) -> Estimate | None:
    """The share of right answers among those with a final answer: choice without format."""
    right, boxed = (results.column(way, what, task) for what in ("correct", "boxed"))
    if right is None or boxed is None or not boxed.any():
        return None
    known = ~np.isnan(right).any(axis=0)
    # An answer can be right without a box: it has a final answer then.
    return ratio_over_seeds(right[:, known], np.maximum(boxed, right)[:, known])


BINS = 5  # of the base's lengths


def length_matched(results: Results, way: Way, task: str) -> Estimate | None:
    """The gain over the base where answers are weighed as the base's lengths are distributed.

    Answers are divided at the quintiles of the base's lengths. In each part the shares of right
    answers are compared, and the parts weigh as many answers as the base has there.
    """
    base = WAYS[0]
    if way is base:
        return None
    columns = [
        results.column(one, what, task) for one in (base, way) for what in ("correct", "tokens")
    ]
    if any(one is None for one in columns):
        return None
    right_base, long_base, right, long = (one.ravel() for one in columns if one is not None)
    edges = np.quantile(long_base, np.linspace(0, 1, BINS + 1)[1:-1])
    parts_base, parts = (np.searchsorted(edges, one) for one in (long_base, long))
    value = variance = weight = 0.0
    for part in range(BINS):
        a, b = right_base[parts_base == part], right[parts == part]
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        if a.size < 2 or b.size < 2:
            continue
        share = a.size / right_base.size
        value += share * float(b.mean() - a.mean())
        variance += share**2 * float(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
        weight += share
    if not weight:
        return None
    return Estimate(value / weight, float(np.sqrt(variance)) / weight, right.size)


def gate_rate(results: Results, task: str) -> Estimate | None:
    """Gated tokens / generated tokens of the method's adapters."""
    seeds = [one["gated"][task] for one in results.of(plan.FIT, plan.METHOD)]
    if not seeds:
        return None
    return ratio([one["gated"] for one in seeds], [one["tokens"] for one in seeds])
