"""Graders of plain answers: an option's letter, and a text that must be the reference word by word.

{"text": "I choose (B).", "answer": "B", "grader": "choice"}
{"text": "#### Paris", "answer": "paris", "grader": "text"}
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from training.grading.reading import choices
from training.grading.statement import Stated, without_thoughts
from training.grading.verdict import Decision, right, unknown, wrong

if TYPE_CHECKING:
    from training.problems.problem import Problem

_SHORT = 200  # characters of a text that may be the answer itself


class ChoiceGrader:
    """Multiple choice with letters. A text that is nothing but an option is an answer too."""

    def grade(self, text: str, stated: Stated, problem: Problem) -> Decision:
        """Compare the letters."""
        wanted = choices.choice(problem.answer)
        if wanted is None:
            return unknown("the reference is no option")
        answer = stated.answer
        spoken = without_thoughts(text).strip()
        if answer is None and len(spoken) <= _SHORT and "\n" not in spoken:
            answer = spoken
        if answer is None:
            return wrong(stated.reason)
        if words(answer) == words(problem.answer):
            return right("the same words")
        several = choices.names_several(answer)
        if several:
            return wrong("the answer names several options")
        given = choices.choice(answer)
        if given is None:
            return wrong("the answer names no option")
        if given.letter != wanted.letter:
            return wrong(f"option {given.letter} is not {wanted.letter}")
        if several is None:
            return unknown("the option's text, or the answer, names another option")
        return right(f"option {given.letter}")

    def reference(self, problem: Problem) -> Decision:
        """Right if the reference names an option."""
        if choices.choice(problem.answer) is None:
            return unknown("it is no option's letter")
        return right("an option")


class TextGrader:
    """Word by word; case, white space and closing punctuation do not count."""

    def grade(self, text: str, stated: Stated, problem: Problem) -> Decision:
        """Compare the texts."""
        del text
        if stated.answer is None:
            return wrong(stated.reason)
        if words(stated.answer) == words(problem.answer):
            return right("the same words")
        return wrong("different words")

    def reference(self, problem: Problem) -> Decision:
        """Every text that has a word is a reference."""
        return right("words") if words(problem.answer) else unknown("it has no word")


def words(text: str) -> str:
    """`text` as it is compared."""
    text = unicodedata.normalize("NFKC", choices.undressed(text)).casefold()
    return re.sub(r"[.!,;:]+$", "", " ".join(text.split())).strip("\"'")
