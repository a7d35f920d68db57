"""What a grader is: it decides at once, or leaves a question to a worker process."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from training.problems.problem import Problem


class Question(Hashable, Protocol):
    """What a worker process must decide about one answer. It is pickled and compared by value."""

    def prepare(self) -> None:
        """Import what `decide` needs; called once per worker, before the clock starts."""

    def decide(self) -> bool:
        """Decide whether the answer is right; runs in a worker process."""


class Grader(Protocol):
    """Grades answers to one kind of problem."""

    def available(self) -> None:
        """Raise ValueError with the command that installs it if a package is missing."""

    def grade(self, text: str, box: str | None, problem: Problem) -> bool | Question:
        r"""Whether `text` answers `problem`, or the question that decides it.

        Args:
            box: the content of the last complete \boxed{...} in `text`, if there is one.
        """
