r"""math-verify as a grader: equal numbers, formulas, sets and intervals.

Answers that plain string or number comparison can decide (`final_answer.py`) never see a process.

The final answer is the last \boxed{...}; without a box, what follows "####", or else an announced
one ("the answer is 18"). A number that merely comes last is not an answer: a truncated rollout
would win by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from training.grading.final_answer import after_hashes, decide, latex

_TAIL = 2000  # characters in which an unboxed answer is looked for


def math_equal(text: str, reference: str, anchored: bool) -> bool:
    """math-verify's judgement, without its timeouts. Runs in a worker."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [
        LatexExtractionConfig(try_extract_without_anchor=not anchored),
        ExprExtractionConfig(try_extract_without_anchor=not anchored),
    ]
    try:
        gold = parse(reference, parsing_timeout=None)
        found = parse(text, extraction_config=targets, parsing_timeout=None)
        return bool(verify(gold, found, timeout_seconds=None))
    except Exception:  # recursion, memory: whatever an adversarial answer provokes
        return False


class MathQuestion(NamedTuple):
    """Whether a text equals a reference, as a question to math-verify."""

    text: str
    reference: str
    anchored: bool  # only an announced answer counts
    compare: Callable[[str, str, bool], bool] = math_equal

    def prepare(self) -> None:
        """Import sympy and math-verify, and build the parser, which the first formula does."""
        math_equal(r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", False)

    def decide(self) -> bool:
        """Decide whether the text's answer equals the reference."""
        return self.compare(self.text, self.reference, self.anchored)


class MathGrader:
    """Compares the final answer with a reference.

    Args:
        compare: (text, reference, anchored) -> correct; importable, runs in the workers.
    """

    def __init__(self, compare: Callable[[str, str, bool], bool] = math_equal) -> None:
        self.compare = compare

    def grade(self, text: str, box: str | None, reference: str) -> bool | MathQuestion:
        """The decision that takes no process, or the question to math-verify."""
        candidate = box if box is not None else after_hashes(text)
        if candidate is not None:
            decided = decide(candidate, reference)
            if decided is not None:
                return decided
            return MathQuestion(latex(candidate), latex(reference), False, self.compare)
        tail = text[-_TAIL:]
        if "answer" not in tail.lower():
            return False
        return MathQuestion(tail, latex(reference), True, self.compare)
