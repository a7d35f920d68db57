"""Lists, sets, tuples, matrices and regions, item by item."""

from __future__ import annotations

import re

from training.grading.compare.comparison import Comparison
from training.grading.compare.relations import DESCRIBED, relations
from training.grading.compare.words import as_words
from training.grading.reading.plain_latex import squeezed
from training.grading.reading.regions import read_regions, same_regions
from training.grading.reading.shapes import Shape, is_name, read_shape
from training.grading.reading.units import spelled
from training.grading.verdict import Decision, right, unknown, wrong

_MONEY = r"(?:USD|EUR|GBP|[€£¥₹])?\s*"
_DECIMAL_COMMA = re.compile(
    rf"({_MONEY}-?(?:\d{{1,3}}(?:[. ]\d{{3}})*|\d+)),(\d+)(\s*[^\s\d,.].*)?"
)
_INDIAN = re.compile(rf"{_MONEY}-?\d{{1,2}}(?:,\d\d)+,\d{{3}}(?:\.\d+)?")
_SETS = re.compile(r"\b(?:all|real|reals|integers?|numbers?|none|empty|solutions?|every|no|any)\b")


def regions(by: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = read_regions(candidate), read_regions(reference)
    if a is None or b is None or not (a.certain or b.certain):
        return None
    return same_regions(a, b, by.inner)


def shapes(by: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = read_shape(candidate), read_shape(reference)
    if a.kind == b.kind == "atom":
        return None
    if a.kind == "relation" or b.kind == "relation":
        return relations(by, a, b, candidate, reference)
    if "atom" in (a.kind, b.kind):
        return _one_and_several(by, a, b)
    named = _assignments(by, a, b)
    if named is not None:
        return named
    return _containers(by, a, b)


def _one_and_several(by: Comparison, a: Shape, b: Shape) -> Decision | None:
    several = b if a.kind == "atom" else a
    if several.kind in ("set", "list", "bracket") and len(several.items) == 1:
        return by.inner(*(one.items[0] for one in (a, b)))
    one = (a if a.kind == "atom" else b).items[0]
    values = _values(list(several.items)) if several.kind == "list" else None
    if values is not None and len({name for name, _ in values}) > 1:
        found = [by.inner(*_sided(a, value, one)).correct for _, value in values]
        if any(decision is not False for decision in found):
            return unknown("several named values against one")
        return wrong("several named values against one")
    listed = ",".join(several.items) if several.kind == "list" else ""
    comma = _DECIMAL_COMMA.fullmatch(listed)
    if comma is not None:
        pointed = spelled(f"{re.sub('[. ]', '', comma[1])}.{comma[2]}{comma[3] or ''}")
        if by.inner(*_sided(a, pointed, one)).correct:
            if "." in comma[1]:
                return right("equal numbers, with a decimal comma")
            return unknown("the comma may be a decimal comma")
    if _INDIAN.fullmatch(listed) and by.inner(listed.replace(",", ""), one).correct:
        return right("equal numbers, with Indian separators")
    if as_words(one) is not None and not _SETS.search(one):
        return wrong("words against values")
    if DESCRIBED.search(one) or _SETS.search(one):
        return unknown("a set that is described against one that is listed")
    return wrong("one value against several")


def _sided(a: Shape, part: str, one: str) -> tuple[str, str]:
    """(candidate, reference) of a part of the side that has several, and the other side."""
    return (one, part) if a.kind == "atom" else (part, one)


def _assignments(by: Comparison, a: Shape, b: Shape) -> Decision | None:
    """x = 1, y = 2 against y = 2, x = 1 or (1, 2); x = 1 or x = 2 against 1, 2."""
    named = [_values(list(one.items)) if one.kind in ("list", "set") else None for one in (a, b)]
    if named == [None, None]:
        return None
    x, y = (
        found or [("", item) for item in one.items]
        for found, one in zip(named, (a, b), strict=True)
    )
    names = [{name for name, _ in found} for found in (x, y)]
    if all(len(found) == 1 for found in names):
        if names[0] != names[1] and "" not in names[0] | names[1]:
            return wrong("different variables")
        return by.any_order([v for _, v in x], [v for _, v in y])
    if "" not in names[0] and "" not in names[1]:
        if names[0] != names[1] or len(x) != len(y):
            return wrong("different variables")
        return by.in_order([v for _, v in sorted(x)], [v for _, v in sorted(y)])
    if len(x) != len(y):
        return wrong("not as many values")
    found = by.in_order([v for _, v in x], [v for _, v in y])
    in_order = [name for name, _ in x or y] == sorted(name for name, _ in x or y)
    return found if in_order or not found.correct else unknown("values in an unusual order")


def _containers(by: Comparison, a: Shape, b: Shape) -> Decision:
    kinds = {a.kind, b.kind}
    if "matrix" in kinds:
        return _matrices(by, a, b)
    if kinds <= {"union", "interval", "tuple", "bracket"} and kinds & {"union", "interval"}:
        return unknown("sets that may be equal") if _paired(a, b) else wrong("different sets")
    if kinds & {"union", "interval"}:
        parts = (*a.items, *b.items)
        described = any(
            DESCRIBED.search(item) or re.search(r"[<>]|\\[lg]e", item) for item in parts
        )
        return unknown("sets that may be equal") if described else wrong("different sets")
    x, y = list(a.items), list(b.items)
    if kinds <= {"list", "set"}:
        if "set" in kinds:
            x, y = list(dict.fromkeys(x)), list(dict.fromkeys(y))
        return by.any_order(x, y)
    if kinds == {"list", "bracket"}:
        return by.any_order(x, y)
    if len(kinds) == 1 or (kinds == {"bracket", "tuple"} and len(x) > 2):
        return by.in_order(x, y)
    if kinds == {"list", "tuple"}:
        ordered = by.in_order(x, y)
        if ordered.correct is not False or len(x) != len(y):
            return ordered
        loose = by.any_order(x, y)
        return loose if loose.correct is False else unknown("equal but for the order")
    if kinds == {"bracket", "set"}:
        loose = by.any_order(x, y)
        return unknown("a list against a set") if loose.correct else loose
    return wrong(f"a {a.kind} is no {b.kind}")


def _paired(a: Shape, b: Shape) -> bool:
    """Whether both may be intervals: a tuple of three is none."""
    return all(one.kind not in ("tuple", "bracket") or len(one.items) == 2 for one in (a, b))


def _matrices(by: Comparison, a: Shape, b: Shape) -> Decision:
    if a.kind == b.kind == "matrix":
        if a.columns != b.columns or len(a.items) != len(b.items):
            return wrong("matrices of different shape")
        return by.in_order(a.items, b.items)
    matrix, other = (a, b) if a.kind == "matrix" else (b, a)
    vector = matrix.columns == 1 or matrix.columns == len(matrix.items)
    if not vector or other.kind not in ("tuple", "bracket", "list"):
        return wrong(f"a {a.kind} is no {b.kind}")
    return by.in_order(a.items, b.items)


def _values(items: list[str]) -> list[tuple[str, str]] | None:
    """(variable, value) of each item of a list such as x = 1, 2 or x = 1, y = 2; None: none."""
    found: list[tuple[str, str]] = []
    for item in items:
        shape = read_shape(item)
        if shape.kind == "relation" and shape.signs[0] == "=" and is_name(shape.items[0]):
            found.append((squeezed(shape.items[0]), shape.items[-1]))
        elif found:
            found.append((found[-1][0], item))
        else:
            return None
    return found
