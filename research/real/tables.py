"""Cells -> rows: the score of each way to answer on each task, and its differences.

A score is a mean over problems; over seeds its standard error has both sources. Differences are
paired by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from research.paper.cells import Cell, CellStore
from research.real import plan, ways
from research.real.tasks import trained_on, training_tasks
from research.real.ways import Way
from training.evaluation.statistics import (
    Estimate,
    Floats,
    contrast_over_seeds,
    over_seeds,
    ratio,
    ratio_over_seeds,
)

AGAINST = (ways.BASE, ways.GREEDY, ways.ALONE)


class Results:
    """The cells of one base that are there.

    Attributes:
        tasks: those that are measured; empty: the rule was not applied yet.
    """

    def __init__(self, cells: Sequence[Cell], store: CellStore, tasks: Sequence[str]) -> None:
        self.cells, self.tasks = list(cells), list(tasks)
        self.found = {cell: result for cell in cells if (result := store.read(cell)) is not None}

    @property
    def ways(self) -> list[Way]:
        """The ways to answer that are planned, in the order of the tables."""
        return [*ways.WAYS, *map(ways.transferred, training_tasks(self.tasks))]

    def of(self, kind: str, variant: str = "") -> list[dict[str, Any]]:
        """The results of one thing, a seed each."""
        return [
            result
            for cell, result in self.found.items()
            if (cell.kind, cell.variant) == (kind, variant)
        ]

    def fits(self, trained: str, task: str) -> list[dict[str, Any]]:
        """The cells that train one kind of adapter for a task, a seed each."""
        return self.of(plan.TRAIN, f"{trained}/{trained_on(task)}")

    def answers(self, way: Way, task: str) -> list[dict[str, Any]]:
        """The cells of one way to answer, a seed each."""
        return self.of(plan.ANSWERS, f"{way.name}/{task}")

    def by_seed(self, way: Way, task: str) -> dict[int | None, Floats]:
        """Seed -> scores [problems] of one way to answer."""
        return {
            cell.seed: np.array(result[plan.ANSWERS][task]["scores"], dtype=np.float64)
            for cell, result in self.found.items()
            if (cell.kind, cell.variant) == (plan.ANSWERS, f"{way.name}/{task}")
        }

    def scores(self, way: Way, task: str) -> Floats | None:
        """[seeds, problems]; None: not measured."""
        return self.column(way, plan.ANSWERS, task)

    def column(self, way: Way, what: str, task: str) -> Floats | None:
        """The same of another figure of each answer: correct, boxed, tokens."""
        seeds = [
            one[what][task]["scores"]
            for one in self.answers(way, task)
            if task in one.get(what, {})
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
    """Name of a way -> its line; what was measured."""
    measured = [
        (way, found) for way in results.ways if (found := results.scores(way, task)) is not None
    ]
    rivals = {way.name: found for way, found in measured if way in AGAINST}
    return {
        way.name: Line(
            way.label,
            over_seeds(scores),
            len(scores),
            {
                name: contrast_over_seeds((1, scores), (-1, rival))
                for name, rival in rivals.items()
                if name != way.name
            },
            finished(results, way, task),
            _mean(results.column(way, "boxed", task)),
            _mean(results.column(way, "tokens", task)),
            length_matched(results, way, task),
        )
        for way, scores in measured
    }


def gain(results: Results, task: str, way: Way, other: Way, share: float = 1.0) -> Estimate | None:
    """The scores of `way` less those of `other`, paired by problem; None: not measured.

    With a share s of the other's gain over the base: (way - base) - s * (other - base).
    """
    one, rival = (results.scores(each, task) for each in (way, other))
    if one is None or rival is None:
        return None
    if share == 1:
        return contrast_over_seeds((1, one), (-1, rival))
    base = results.scores(ways.BASE, task)
    if base is None:
        return None
    return contrast_over_seeds((1, one), (-share, rival), (share - 1, base))


def same_adapters(results: Results, task: str, way: Way) -> Estimate | None:
    """The scores of `way` less those of the gated adapters, where both have the same adapters.

    They are paired by problem and by seed, so that what fits differ by is in no difference; None:
    no seed is measured in both ways.
    """
    one, gated = (results.by_seed(each, task) for each in (way, ways.GATED))
    seeds = [seed for seed in one if seed in gated]
    if not seeds:
        return None
    return over_seeds([one[seed] - gated[seed] for seed in seeds])


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
    answers are compared, and the parts weigh as many answers as the base has there. The standard
    error is linearized: paired by problem, and with the variance between seeds.
    """
    base = ways.BASE
    if way is base:
        return None
    columns = [
        results.column(one, what, task) for one in (base, way) for what in ("correct", "tokens")
    ]
    if any(one is None for one in columns):
        return None
    right_base, long_base, right, long = (one for one in columns if one is not None)
    edges = np.quantile(long_base, np.linspace(0, 1, BINS + 1)[1:-1])
    parts = np.searchsorted(edges, long_base[0])  # [problems]
    gains = []
    pulls = np.zeros(right.shape)  # what each problem adds to the gain of each seed, less its mean
    for seed in range(len(right)):
        value = weight = 0.0
        own_parts = np.searchsorted(edges, long[seed])
        for part in range(BINS):
            theirs, ours = (parts == part), (own_parts == part)
            theirs &= ~np.isnan(right_base[0])
            ours &= ~np.isnan(right[seed])
            if min(theirs.sum(), ours.sum()) < 2:
                continue
            share = theirs.sum() / theirs.size
            means = right_base[0, theirs].mean(), right[seed, ours].mean()
            value += share * (means[1] - means[0])
            weight += share
            pulls[seed, ours] += share * (right[seed, ours] - means[1]) / ours.sum()
            pulls[seed, theirs] -= share * (right_base[0, theirs] - means[0]) / theirs.sum()
        if not weight:
            return None
        gains.append(value / weight)
        pulls[seed] /= weight
    # A score of each problem whose mean is the gain, and whose spread is that of the pulls.
    return over_seeds(np.array(gains)[:, None] + parts.size * pulls)


def gate_rate(results: Results, task: str) -> Estimate | None:
    """Gated tokens / generated tokens of the method's adapters."""
    seeds = [one[plan.ANSWERS][task] for one in results.answers(ways.GATED, task)]
    if not seeds:
        return None
    return ratio([one["gated"] for one in seeds], [one["tokens"] for one in seeds])
