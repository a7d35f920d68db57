r"""Can answers be compared with a reference at all?

`\frac{1}{2`, "see the figure" and `1, 2, \ldots, n` cannot: whatever a model answers would be
wrong, or could not be told. Such problems are named when they are loaded, and left out.
"""

from __future__ import annotations

from training.grading.compare import Effort, NeedsWorkerError
from training.grading.compare.words import as_words
from training.grading.final_answer import last_boxed
from training.grading.reading import choices, dates
from training.grading.reading.arithmetic import (
    IrrationalError,
    TooLargeError,
    UndefinedError,
    read_number,
)
from training.grading.reading.plain_latex import plain, squeezed
from training.grading.reading.shapes import is_name, read_shape
from training.grading.reading.units import read_quantity, spelled, without_unit
from training.grading.verdict import Decision, right, unknown

_DEEPEST = 8  # brackets within brackets
_MOST_WORDS = 12  # a longer text has no single wording


def check(reference: str, effort: Effort) -> Decision:
    """Right if answers can be compared with `reference`.

    Raises:
        NeedsWorkerError: it takes computer algebra to know.
    """
    if not reference.strip():
        return unknown("it is empty")
    if last_boxed(rf"\boxed{{{reference}}}") != reference:
        return unknown("its braces are not balanced")
    if choices.is_choice(reference):
        return right("an option")
    text = spelled(plain(reference))
    if r"\ldots" in text:
        return unknown("an ellipsis leaves out what would have to be compared")
    return _readable(text, effort, 0)


def _readable(text: str, effort: Effort, depth: int) -> Decision:
    found = _simple(text, effort)
    if found is not None:
        return found
    shape = read_shape(text)
    if shape.kind != "atom" and depth < _DEEPEST:
        for item in shape.items:
            if shape.kind == "relation" and is_name(item):
                continue
            part = _readable(item, effort, depth + 1)
            if not part.correct:
                return part
        return right(f"a {shape.kind}")
    if not effort.algebra:
        raise NeedsWorkerError
    from training.grading.compare.algebra import formula

    text = without_unit(text).replace(r"\pm", "+").replace(r"\mp", "-")
    if formula(text) is None:
        return unknown("it cannot be parsed")
    return right("a formula")


def _simple(text: str, effort: Effort) -> Decision | None:
    """What is a number, a quantity, a time or words; None: it is something else."""
    number = read_number(text)
    if number is not None:
        try:
            number.value(effort.bits)
        except UndefinedError as error:
            return unknown(f"it has no value: {error}")
        except (TooLargeError, IrrationalError):
            pass
        return right("a number")
    if read_quantity(text) is not None or squeezed(text).lstrip("+-") == r"\infty":
        return right("a quantity")
    if dates.time_of_day(text) is not None or dates.dates(text) or text == r"\emptyset":
        return right("a time or a set")
    if all(part.strip() and read_number(part.strip()) for part in text.split(":")):
        return right("a ratio")
    words = as_words(text)
    if words is None:
        return None
    if words.count(" ") >= _MOST_WORDS:
        return unknown("it is prose, which has no single wording")
    return right("words")
