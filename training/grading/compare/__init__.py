"""Comparing an answer with its reference.

answer.py                  compare(): the steps in their order
comparison.py              what they share: the effort allowed, items in order or in any order
numbers.py, residues.py    exact numbers; those that are too large to compute
spellings.py               18k, XIV, third
quantities.py              units, times and dates
shorthand.py               what is written short: ellipses, plus or minus, infinity
containers.py              lists, sets, tuples, matrices, regions
relations.py               equations and inequalities
words.py                   short texts
algebra.py                 what is left: formulas, by computer algebra
"""

from training.grading.compare.answer import HERE, WORKER, compare
from training.grading.compare.comparison import Effort, NeedsWorkerError

__all__ = ["HERE", "WORKER", "Effort", "NeedsWorkerError", "compare"]
