"""Which cells there are of a base, in the order in which they are made.

What answers most for its cost comes first: the rule, the base, then the method's seeds, its
controls, then what explains them, and the costly methods last.
"""

from __future__ import annotations

from collections.abc import Sequence

from research.paper.cells import Cell
from research.real import ways
from research.real.tasks import trained_on, training_tasks
from research.real.ways import Way

RULE, TRAIN, ANSWERS = "rule", "train", "answers"
SIGNAL, FOOTPRINT, INTERVENE, OVERLAP = "signal", "footprint", "intervene", "overlap"

OF_EACH_SEED = (  # beside the gated adapters
    ways.RANDOM_REWARDS,
    ways.RANDOM_POSITIONS,
    ways.ALWAYS,
    ways.WIDER,
    ways.GATED_GREEDY,
    ways.SHUT_GATE,
    ways.RIGHT_ALONE,
)
SMALLER = (ways.RANK_1, ways.O_ONLY)
ONCE = (ways.VOTE, ways.GUIDED, ways.OTHER_BASE, ways.OTHER_GATED)
OTHER_METHODS = (ways.SUPERVISED, ways.PAPER_FIT, ways.REINFORCED)


def plan(base: str, seeds: Sequence[int], tasks: Sequence[str]) -> list[Cell]:
    """All cells of a base.

    Args:
        tasks: those that are measured. Empty: the rule is not applied yet.
    """
    first = [Cell(base, RULE)]
    if not tasks:
        return first
    start, sources = seeds[0], training_tasks(tasks)
    found = [answers(base, way, task, None) for way in (ways.BASE, ways.GREEDY) for task in tasks]
    for seed in seeds:
        found += _fitted(base, [ways.GATED], tasks, seed)
    found += _fitted(base, [ways.ALONE], tasks, start)
    found += [mean(base, task, seeds) for task in tasks]
    for seed in seeds:
        found += _fitted(base, OF_EACH_SEED, tasks, seed)
    found += [Cell(base, OVERLAP), *(Cell(base, SIGNAL, source, start) for source in sources)]
    found += [Cell(base, kind, task, start) for kind in (FOOTPRINT, INTERVENE) for task in tasks]
    for seed in seeds:
        found += _fitted(base, SMALLER, tasks, seed)
    found += _fitted(base, ONCE, tasks, start)
    for source in sources:
        others = [task for task in tasks if trained_on(task) != source]
        found += _fitted(base, [ways.transferred(source)], others, start)
    for seed in seeds:
        found += _fitted(base, OTHER_METHODS, tasks, seed)
    return list(dict.fromkeys(first + found))  # an adapter is trained once


def _fitted(base: str, chosen: Sequence[Way], tasks: Sequence[str], seed: int) -> list[Cell]:
    """Cells of some ways to answer, task by task: first the trainings, each with an engine of its
    own, then all answers, by one engine that has cached the prompts."""
    found = []
    for task in tasks:
        found += [adapter_of(base, way, task, seed) for way in chosen if way.trained]
        found += [answers(base, way, task, seed if way.trained else None) for way in chosen]
    return found


def adapter_of(base: str, way: Way, task: str, seed: int) -> Cell:
    """The cell that trains the adapter which answers `task` in one way."""
    return train(base, way.trained, way.fitted_on or task, seed)


def train(base: str, trained: str, task: str, seed: int) -> Cell:
    """The cell that trains an adapter for one task."""
    flags = ways.FITS.get(trained, ())
    return Cell(base, TRAIN, f"{trained}/{trained_on(task)}", seed, flags)


def answers(base: str, way: Way, task: str, seed: int | None) -> Cell:
    """The cell of the answers to one task."""
    return Cell(base, ANSWERS, f"{way.name}/{task}", seed)


def mean(base: str, task: str, seeds: Sequence[int]) -> Cell:
    """The cell of the answers of the mean of the method's adapters; its flags are their seeds."""
    return Cell(base, ANSWERS, f"{ways.MEAN.name}/{task}", flags=tuple(map(str, seeds)))
