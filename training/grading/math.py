r"""The default grader: mathematics, units, dates, letters and short texts (`compare.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from training.grading import references
from training.grading.compare import HERE, WORKER, NeedsWorkerError, compare
from training.grading.statement import Stated
from training.grading.verdict import Decision, unknown, wrong

if TYPE_CHECKING:
    from training.problems.problem import Problem

Compare = Callable[[str, str], Decision]


def math_equal(candidate: str, reference: str) -> Decision:
    """Whether a final answer equals its reference, with computer algebra. Runs in a worker."""
    return _guarded(lambda: compare(candidate, reference, WORKER))


def _guarded(decide: Callable[[], Decision]) -> Decision:
    try:
        return decide()
    except NeedsWorkerError:
        return unknown("the comparison takes too much")
    except (Exception, MemoryError) as error:  # whatever an adversarial answer provokes
        return unknown(f"the comparison failed ({type(error).__name__})")


class MathQuestion(NamedTuple):
    """Whether an answer equals its reference, as a question to a worker."""

    answer: str
    reference: str
    compare: Compare = math_equal

    def prepare(self) -> None:
        """Import sympy, and build the parser, which the first formula does."""
        math_equal(r"\sqrt{2}", r"\frac{2}{\sqrt{2}}")

    def decide(self) -> Decision:
        """Decide whether the answer equals the reference."""
        return self.compare(self.answer, self.reference)


class ReferenceQuestion(NamedTuple):
    """Whether a reference can be compared at all, as a question to a worker."""

    reference: str

    def prepare(self) -> None:
        """See `MathQuestion`."""
        math_equal(r"\sqrt{2}", r"\frac{2}{\sqrt{2}}")

    def decide(self) -> Decision:
        """Right if answers can be compared with the reference."""
        return _guarded(lambda: references.check(self.reference, WORKER))


class MathGrader:
    """Compares the final answer with a reference.

    Args:
        compare: (answer, reference) -> decision; importable, runs in the workers.
    """

    def __init__(self, compare: Compare = math_equal) -> None:
        self.compare = compare

    def grade(self, text: str, stated: Stated, problem: Problem) -> Decision | MathQuestion:
        """The decision that takes no process, or the question to one."""
        return self.grade_against(text, stated, problem.answer)

    def grade_against(self, text: str, stated: Stated, reference: str) -> Decision | MathQuestion:
        """The same for a reference alone."""
        del text
        if stated.answer is None:
            return wrong(stated.reason)
        try:
            return compare(stated.answer, reference, HERE)
        except NeedsWorkerError:
            return MathQuestion(stated.answer, reference, self.compare)
        except Exception as error:  # whatever an adversarial answer provokes
            return unknown(f"the comparison failed ({type(error).__name__})")

    def reference(self, problem: Problem) -> Decision | ReferenceQuestion:
        """Whether answers can be compared with the problem's reference."""
        try:
            return references.check(problem.answer, HERE)
        except NeedsWorkerError:
            return ReferenceQuestion(problem.answer)
