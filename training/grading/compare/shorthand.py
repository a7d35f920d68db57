r"""What is written short: 1, 2, \ldots, n; \pm 3; \infty; + C; x \equiv 3 \pmod 7."""

from __future__ import annotations

import re

from training.grading.compare.comparison import Comparison, NeedsWorkerError
from training.grading.reading.arithmetic import read_number
from training.grading.reading.plain_latex import squeezed
from training.grading.reading.shapes import list_items, read_shape, terms
from training.grading.verdict import Decision, right, unknown, wrong

_CONGRUENCE = re.compile(
    r"(?P<name>[^=<>]+?)\s*\\equiv\s*(?P<value>[^()\\]+?)\s*"
    r"(?:\\pmod|\\bmod|\\mod|\(\s*\\?(?:bmod|mod)|\\?mod)\s*\{?\s*(?P<modulus>\d+)\s*\}?\s*\)?"
)
_CONSTANT = re.compile(r"(?P<rest>.+\S)\s*\+\s*(?:[CcKk]|\\text\{const(?:ant)?\.?\}|const(?:ant)?)")


def ellipses(by: Comparison, candidate: str, reference: str) -> Decision | None:
    """What is left out is never known: equal only as strings, wrong if a part differs."""
    dots = r"\ldots"
    if dots not in candidate and dots not in reference:
        return None
    a, b = terms(candidate), terms(reference)
    ends = [one[-1] for one in (a, b) if one and dots not in one[-1]]
    pairs = []
    for x, y in zip(a, b, strict=False):
        if dots in x or dots in y:
            break
        pairs.append((x, y))
    if len(ends) == 2 and len(a) > 1 and len(b) > 1:
        pairs.append((ends[0], ends[1]))
    if not by.effort.algebra and pairs:
        raise NeedsWorkerError
    for x, y in pairs:
        if by.inner(x, y).correct is False:
            return wrong("a part beside the ellipsis differs")
    return unknown("an ellipsis leaves out what would have to be compared")


def infinities(_: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = (squeezed(one).lstrip("+") for one in (candidate, reference))
    infinite = ("\\infty", "-\\infty")
    if a not in infinite and b not in infinite:
        return None
    if a in infinite and b in infinite:
        return right("the same") if a == b else wrong("infinities of opposite sign")
    finite = b if a in infinite else a
    return wrong("one is infinite") if read_number(finite) is not None else None


def congruences(by: Comparison, candidate: str, reference: str) -> Decision | None:
    r"""x \equiv 3 \pmod 7 is x \equiv 10 \pmod 7."""
    a, b = _CONGRUENCE.fullmatch(candidate), _CONGRUENCE.fullmatch(reference)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return unknown("only one side is a congruence")
    x, y = read_number(a["value"]), read_number(b["value"])
    if x is None or y is None or squeezed(a["name"]) != squeezed(b["name"]):
        return unknown("congruences that may be equal")
    if a["modulus"] != b["modulus"]:
        return wrong("different moduli")
    difference = (by.value(x) - by.value(y)) / int(a["modulus"] or 1)
    return right("congruent") if difference.denominator == 1 else wrong("not congruent")


def constants(by: Comparison, candidate: str, reference: str) -> Decision | None:
    """A constant of integration has any name."""
    a, b = _CONSTANT.fullmatch(candidate), _CONSTANT.fullmatch(reference)
    return by.inner(a["rest"], b["rest"]) if a and b else None


def signs(by: Comparison, candidate: str, reference: str) -> Decision | None:
    r"""\pm 3 is the list 3, -3."""
    expanded = [_both_signs(text) for text in (candidate, reference)]
    if expanded == [candidate, reference]:
        return None
    return by.inner(expanded[0], expanded[1])


def _both_signs(text: str) -> str:
    r"""`text` with \pm written out: "2, \pm 3" is "2, +3, -3"."""
    if r"\pm" not in text and r"\mp" not in text:
        return text
    if read_shape(text).kind not in ("list", "atom", "relation", "set"):
        return text
    braces = read_shape(text).kind == "set"
    found = []
    for item in list_items(text[2:-2] if braces else text):
        if r"\pm" in item or r"\mp" in item:
            found.append(item.replace(r"\pm", "+").replace(r"\mp", "-"))
            found.append(item.replace(r"\pm", "-").replace(r"\mp", "+"))
        else:
            found.append(item)
    listed = ", ".join(re.sub(r"(^|=)\s*\+\s*", r"\1", item) for item in found)
    return rf"\{{{listed}\}}" if braces else listed
