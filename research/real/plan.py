"""Which cells there are of a base, in the order in which they are made.

What answers most for its cost comes first: the rule, the base, then the first seed of the method
and its controls, then the other seeds, then what explains them.
"""

from __future__ import annotations

from collections.abc import Sequence

from research.paper.cells import Cell
from research.real import ways
from research.real.ways import Way

RULE, TRAIN, ANSWERS = "rule", "train", "answers"
SIGNAL, FOOTPRINT, INTERVENE, OVERLAP = "signal", "footprint", "intervene", "overlap"

OF_EACH_SEED = (
    ways.GATED,
    ways.RANDOM_REWARDS,
    ways.RANDOM_POSITIONS,
    ways.ALWAYS,
    ways.GATED_GREEDY,
    ways.SHUT_GATE,
    ways.RIGHT_ALONE,
)
ONCE = (ways.VOTE, ways.RANK_1, ways.O_ONLY, ways.GUIDED, ways.OTHER_BASE, ways.OTHER_GATED)
OTHER_METHODS = (ways.SUPERVISED, ways.PAPER_FIT, ways.REINFORCED)


def plan(base: str, seeds: Sequence[int], tasks: Sequence[str]) -> list[Cell]:
    """All cells of a base.

    Args:
        tasks: those that are measured. Empty: the rule is not applied yet.
    """
    first = [Cell(base, RULE)]
    if not tasks:
        return first
    start = seeds[0]
    cells = [*first, *_answers(base, ways.BASE, tasks, start)]
    cells += _answers(base, ways.GREEDY, tasks, start)
    for seed in seeds:
        for way in OF_EACH_SEED:
            cells += _answers(base, way, tasks, seed)
        if seed == start:
            cells += _answers(base, ways.ALONE, tasks, seed)
    cells += [Cell(base, OVERLAP), Cell(base, SIGNAL, "", start)]
    cells += [Cell(base, kind, task, start) for kind in (FOOTPRINT, INTERVENE) for task in tasks]
    for way in (*ONCE, *map(ways.fitted_on, tasks[:2])):
        cells += _answers(base, way, tasks, start)
    for seed in seeds:
        for way in OTHER_METHODS:
            cells += _answers(base, way, tasks, seed)
    return list(dict.fromkeys(cells))  # an adapter is trained once


def _answers(base: str, way: Way, tasks: Sequence[str], seed: int) -> list[Cell]:
    """Cells of one way to answer, after the one that trains its adapter."""
    if not way.trained:
        return [answers(base, way, task, None) for task in tasks]
    return [train(base, way.trained, seed), *(answers(base, way, task, seed) for task in tasks)]


def train(base: str, trained: str, seed: int) -> Cell:
    """The cell that trains an adapter."""
    return Cell(base, TRAIN, trained, seed, ways.FITS.get(trained, ()))


def answers(base: str, way: Way, task: str, seed: int | None) -> Cell:
    """The cell of the answers to one task."""
    return Cell(base, ANSWERS, f"{way.name}/{task}", seed)
