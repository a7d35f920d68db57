"""Problems with reference answers and graders.

problem.py        Problem
sources.py        load_problems: what a source string names
mixture.py        several sources in one
benchmarks.py     benchmarks that have a name, and local copies of them
table.py, rows.py files and hub datasets; chat.py: conversations
overlap.py        problems that training and a test share; trained_on.py: those of an adapter
prompts.py        load_prompts: questions and conversations without answers
"""

from training.problems.benchmarks import BENCHMARKS, DATA_DIR, Benchmark, benchmark_of
from training.problems.overlap import overlaps, without_overlaps
from training.problems.problem import Grading, Problem, write_problems
from training.problems.sources import benchmarks_at_hand, load_problems, source_name
from training.problems.trained_on import read_trained_on, write_trained_on

__all__ = [
    "BENCHMARKS",
    "DATA_DIR",
    "Benchmark",
    "Grading",
    "Problem",
    "benchmark_of",
    "benchmarks_at_hand",
    "load_problems",
    "overlaps",
    "read_trained_on",
    "source_name",
    "without_overlaps",
    "write_problems",
    "write_trained_on",
]
