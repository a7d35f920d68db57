"""The graders that a problem can name."""

from __future__ import annotations

from functools import lru_cache

from training.grading.exact import ChoiceGrader, TextGrader
from training.grading.grader import Grader
from training.grading.math import MathGrader
from training.grading.reasoning_gym import GymGrader
from training.gym.task import require_reasoning_gym

MATH = "math"  # the default
GYM = "reasoning_gym"
GRADERS: dict[str, Grader] = {
    MATH: MathGrader(),
    "choice": ChoiceGrader(),
    "text": TextGrader(),
    GYM: GymGrader(),
}


@lru_cache
def grader_of(name: str) -> Grader:
    """The grader called `name`.

    Raises:
        ValueError: no grader has that name, or its package is not installed.
    """
    if name not in GRADERS:
        raise ValueError(f"problems: there is no grader '{name}', only {', '.join(GRADERS)}")
    if name == GYM:
        require_reasoning_gym()
    return GRADERS[name]
