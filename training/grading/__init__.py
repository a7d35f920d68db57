"""Grading: whether the final answer of a text is right, by a grader for each kind of problem.

    verifier.py        Verifier: grades many answers, under a deadline and a memory limit
    worker.py          the processes in which it computes what is slow or may hang
    grader.py          what a grader is, and the question that it leaves to a worker
    registry.py        the graders by name
    math.py            mathematics, by math-verify; the default
    reasoning_gym.py   Reasoning Gym's problems, by their generator's own `score_answer`
    final_answer.py    the final answer inside a text, and what needs no computer algebra

A grader decides at once what it can. For the rest it makes a `Question`, which a worker answers.
"""

from training.grading.final_answer import last_boxed
from training.grading.math import math_equal
from training.grading.verifier import Verdict, Verifier

__all__ = ["Verdict", "Verifier", "last_boxed", "math_equal"]
