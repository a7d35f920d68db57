"""Words: Tuesday, no solution, yes."""

from __future__ import annotations

import re

from training.grading.compare.comparison import Comparison
from training.grading.reading.arithmetic import read_number
from training.grading.reading.units import read_quantity
from training.grading.verdict import Decision, right, unknown, wrong

_SHORT_WORDS = frozenset([
    "yes", "no", "on", "off", "odd", "all", "any", "red", "one", "two", "six", "ten", "tie",
    "win", "out", "up", "not", "sun", "mon", "may", "boy", "man", "day", "none",
])  # fmt: skip
_SYNONYMS = ({"yes", "true"}, {"no", "false"})
_NEGATION = re.compile(r"\b(?:no|not|non|never|none|neither|cannot|un\w+|in\w+able)\b")
_LETTERS = re.compile(r"[A-Za-z][A-Za-z\s'\-,.]*")
# "sun" may be the star.
_IN_FULL = {
    **{"mon": "monday", "tue": "tuesday", "tues": "tuesday", "wed": "wednesday"},
    **{"thu": "thursday", "thur": "thursday", "thurs": "thursday", "fri": "friday"},
    **{"sat": "saturday", "jan": "january", "feb": "february", "mar": "march", "apr": "april"},
    **{"jun": "june", "jul": "july", "aug": "august", "sep": "september", "sept": "september"},
    **{"oct": "october", "nov": "november", "dec": "december"},
}
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")


def words(_: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = as_words(candidate), as_words(reference)
    if a is None and b is None:
        return None
    if a is None or b is None:
        word, other = (a, reference) if a is not None else (b, candidate)
        if r"\emptyset" in other:
            return unknown("words against the empty set")
        if len((word or "").replace(" ", "")) <= 3:
            return None  # may be a product of variables
        if read_number(other) is not None or read_quantity(other) is not None:
            return wrong("words against a number")
        formula = re.search(r"[\\\d+\-*/^()=<>|]", other)
        return wrong("words against a formula") if formula else unknown("different words")
    if a == b or _stem(a) == _stem(b):
        return right("the same words")
    if a in _SHORT_WORDS or b in _SHORT_WORDS:
        return wrong("different words") if {a, b} not in _SYNONYMS else unknown("yes or true")
    if len(a) <= 3 and len(b) <= 3 and " " not in a + b:
        product = sorted(candidate) == sorted(reference)
        return unknown("words, or products of variables") if product else None
    inside = re.search(rf"\b{re.escape(b)}\b", a) or re.search(rf"\b{re.escape(a)}\b", b)
    long = min(a.count(" "), b.count(" ")) >= 2
    negated = bool(_NEGATION.search(a)) != bool(_NEGATION.search(b))
    if not negated and (inside or long):
        return unknown("words that may mean the same")
    return wrong("different words")


def as_words(text: str) -> str | None:
    """`text` in lower case if it is words and no formula, else None."""
    if not _LETTERS.fullmatch(text) or len(text) < 2 or re.search(r"\bd?[a-z]\b.*\b[a-z]\b", text):
        return None
    words = _ARTICLES.sub("", re.sub(r"[^a-z ]+", " ", text.lower()))
    words = " ".join(words.split())
    return _IN_FULL.get(words, words) or None


def _stem(words: str) -> str:
    """`words` without the plural's s; "princess" and "needless" end in another one."""
    return " ".join(re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", word) for word in words.split())
