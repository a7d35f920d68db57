"""What a grader is: it decides at once, or leaves a question to a worker process."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

from training.grading.verdict import Decision

if TYPE_CHECKING:
    from training.grading.statement import Stated
    from training.problems.problem import Problem


class Question(Hashable, Protocol):
    """What a worker process must decide about one answer. It is pickled and compared by value."""

    def prepare(self) -> None:
        """Import what `decide` needs; called once per worker, before the clock starts."""

    def decide(self) -> Decision:
        """Decide whether the answer is right; runs in a worker process."""


class Grader(Protocol):
    """Grades answers to one kind of problem."""

    def grade(self, text: str, stated: Stated, problem: Problem) -> Decision | Question:
        """Whether `text` answers `problem`, or the question that decides it.

        Args:
            stated: the final answer that `text` states, if it does.
        """

    def reference(self, problem: Problem) -> Decision | Question:
        """Right if the grader can grade answers to `problem`, else the reason why it cannot."""
