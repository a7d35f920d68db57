r"""Multiple choice: the letter of an option, however it is dressed.

    B   (B)   B.   \text{B}   **B**   B: some text   (B) some text   option B   B) 12

An answer that names several letters ("A or B", "A/C") chooses none and is wrong.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|bf|rm)\s*\{([^{}]*)\}"
)
_LETTER = re.compile(
    r"(?:(?:option|choice|answer|select)\s*(?:is)?\s*[:.]?\s*)?"
    r"(?:\(\s*(?P<round>[A-Za-z])\s*\)|\[\s*(?P<square>[A-Z])\s*\]|(?P<bare>[A-Za-z])(?![A-Za-z0-9_^'({]))"
    r"(?P<mark>\s*(?:[.:)\-–—]|$))?\s*(?P<text>.*)",
    re.DOTALL | re.IGNORECASE,
)
_OTHER = re.compile(
    r"(?:^|[\s,;/&(])(?:or|and|/|,|&)\s*\(?([A-J])\)?(?=[\s).:,;/]|$)|\(([A-J])\)|\b([B-J])[.:)](?=\s)"
)
_LIST = re.compile(
    r"\(?[A-J]\)?(?:\s*(?:,|/|;|&|or|and)\s*(?:or|and)?\s*\(?[A-J]\)?)+\.?", re.IGNORECASE
)


class Choice(NamedTuple):
    """An option: its letter, and the text that follows the letter."""

    letter: str
    text: str
    lower: bool  # it was written in lower case, alone


def is_choice(reference: str) -> bool:
    """Whether a reference answer is an option's letter, dressed or not, with no text."""
    found = choice(reference)
    return found is not None and not found.text and found.letter in "ABCDEFGHIJ" and not found.lower


def undressed(text: str) -> str:
    """`text` without LaTeX fonts, dollar signs and Markdown around it."""
    text = text.strip().strip("$").strip()
    for _ in range(3):
        text = _FONT.sub(r" \1 ", text)
    text = text.replace("\\ ", " ").replace("~", " ").replace("\\,", " ").replace("\\quad", " ")
    text = re.sub(r"\\left|\\right|\\boxed|^<(?=\s*[A-J]\s*>$)|(?<=[A-J])\s*>$", "", text)
    return re.sub(r"\s+", " ", text).strip().strip("*_`").strip()


def choice(text: str) -> Choice | None:
    """The option that `text` names; None if it names none, or several."""
    bare = undressed(text)
    match = _LETTER.fullmatch(bare)
    if match is None:
        return None
    letter = match["round"] or match["square"] or match["bare"]
    rest = (match["text"] or "").strip().rstrip(".").strip()
    marked = bool((match["mark"] or "").strip()) or match["bare"] is None
    if rest and not marked:
        return None  # "A dog": an article, not an option
    if letter.islower() and rest and match["round"] is None:
        return None
    lower = letter.islower() and not marked
    return Choice(letter.upper(), rest, lower)


def names_several(text: str) -> bool:
    """Whether `text` names more than one option."""
    bare = undressed(text)
    if _LIST.fullmatch(bare):
        return True
    found = choice(text)
    if found is None or not found.text:
        return False
    for match in _OTHER.finditer(" " + found.text):
        other = (match[1] or match[2] or match[3] or "").upper()
        if other and other != found.letter:
            return True
    return False
