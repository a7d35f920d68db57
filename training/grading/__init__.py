"""Graders: whether the final answer of a text is right, each for its own kind of problem.

    math_verify       mathematics, the default
    reasoning_gym     the generator's own `score_answer`

A grader decides at once what it can. For the rest it makes a `Question`, which a worker process of
`training.verify` answers under a deadline and a memory limit.
"""

from training.grading.grader import Grader, Question
from training.grading.math import MathGrader, MathQuestion, math_equal
from training.gym.grader import GymGrader, GymQuestion

# The grader that `Problem.grading.grader` names.
GRADERS: dict[str, Grader] = {"reasoning_gym": GymGrader()}

__all__ = [
    "GRADERS",
    "Grader",
    "GymGrader",
    "GymQuestion",
    "MathGrader",
    "MathQuestion",
    "Question",
    "math_equal",
]
