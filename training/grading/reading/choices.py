r"""Multiple choice: the letter of an option, however it is dressed.

    B   (B)   B.   \text{B}   **B**   B: some text   (B) some text   option B   B) 12

An answer that names several letters ("A or B", "A/C") chooses none and is wrong. The text of an
option may name others: "D) Both A and B" is D, and "C. Hepatitis A and B" may be C.
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
_OTHER = r"(?:^|[\s,;/&(])(?:or|and|/|,|&)\s*\(?([A-J])\)?(?=[\s).:,;/]|$)"
_OTHER_MARKED = r"\(([A-J])\)|\b([B-J])[.:)](?=\s)"
_LETTERS = r"\(?[A-J]\)?(?:\s*(?:,|/|;|&|or|nor|and)\s*(?:or|and)?\s*\(?[A-J]\)?)+"
_LIST = re.compile(rf"{_LETTERS}\.?", re.IGNORECASE)
# The text of an option that combines those before it.
_COMBINED = re.compile(
    rf"(?i:(?:both|either|neither|all of|only)\s+)(?P<named>{_LETTERS})(?:\s+[a-z]+){{0,4}}|"
    rf"(?P<alone>{_LETTERS})(?:\s+(?i:only|alone|together))?"
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


def names_several(text: str) -> bool | None:
    """Whether `text` names more than one option; None: perhaps, or the option's text names them."""
    bare = undressed(text)
    if _LIST.fullmatch(bare):
        return True
    found = choice(text)
    if found is None or not found.text:
        return False
    combined = _COMBINED.fullmatch(found.text)
    if combined is not None:
        named = re.findall(r"\b[A-J]\b", combined["named"] or combined["alone"])
        if all(letter < found.letter for letter in named):
            return False
    if _names_another(_OTHER_MARKED, found):
        return True
    return None if _names_another(_OTHER, found) else False


def _names_another(pattern: str, found: Choice) -> bool:
    others = re.findall(pattern, " " + found.text)
    return any(letter != found.letter for one in others for letter in "".join(one))
