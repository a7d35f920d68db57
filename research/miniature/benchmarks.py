"""Six miniature benchmarks, from easy to hard, that stand for the paper's six.

All of their problems are of the held-out split; those of the hard ones are longer besides than any
that a base has seen, so that they ask for the strategy beyond where it was learned.
"""

from itertools import islice
from typing import NamedTuple

from research.miniature.world import Problem, puzzles

SEED = 2  # not one of a corpus' or of a fit's problems


class Benchmark(NamedTuple):
    """A held-out set of problems."""

    stands_for: str  # the paper's
    kinds: tuple[str, ...]  # as find_kind takes them
    problems: int
    samples: int = 1  # answers to each, more where there are few problems (avg@k)


BENCHMARKS: dict[str, Benchmark] = {
    "short": Benchmark(
        "GSM8K", ("expression:3", "undo:3", "increasing:4", "leftward:3"), 100
    ),
    "mixed": Benchmark("MATH500", ("expression", "undo", "increasing", "leftward"), 120),
    "undo": Benchmark("Minerva", ("undo:4",), 100),
    "increasing": Benchmark("AMC23", ("increasing:5",), 100),
    "long": Benchmark(
        "OlympiadBench", ("expression:5", "undo:5", "increasing:6", "leftward:5"), 100
    ),
    "longest": Benchmark("AIME24", ("expression:6", "leftward:6", "increasing:7"), 30, samples=8),
}  # fmt: skip


def benchmark_problems(name: str) -> list[Problem]:
    """The problems of benchmark `name`, always the same. Raises ValueError naming the known."""
    if name not in BENCHMARKS:
        raise ValueError(f"--benchmark: '{name}' is unknown; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    stream = islice(puzzles(SEED, "heldout", benchmark.kinds), benchmark.problems)
    return [puzzle.problem for puzzle in stream]
