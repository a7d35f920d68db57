"""The graders that `Problem.grading.grader` can name."""

from __future__ import annotations

from functools import lru_cache

from training.grading.grader import Grader
from training.grading.reasoning_gym import GymGrader

GRADERS: dict[str, Grader] = {"reasoning_gym": GymGrader()}


@lru_cache
def grader_of(name: str) -> Grader:
    """The grader called `name`.

    Raises:
        ValueError: no grader has that name, or its package is not installed.
    """
    if name not in GRADERS:
        raise ValueError(f"problems: there is no grader '{name}', only {', '.join(GRADERS)}")
    grader = GRADERS[name]
    grader.available()
    return grader
