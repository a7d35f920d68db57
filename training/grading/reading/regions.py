r"""Intervals however they are written: (1, 2], 1 < x \le 2, x \in (1, 2], x < 1 or x > 3."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from training.grading.reading.arithmetic import read_number
from training.grading.reading.plain_latex import squeezed
from training.grading.reading.shapes import Shape, is_name, read_shape
from training.grading.verdict import Decision, all_of, right, unknown, wrong

_INFINITY = r"\infty"


class Interval(NamedTuple):
    """What lies between two ends, each with or without the end itself."""

    low: str
    high: str
    low_open: bool
    high_open: bool


class Region(NamedTuple):
    """One interval or several, and the variable that lies in them, if it was named."""

    intervals: tuple[Interval, ...]
    variable: str = ""
    certain: bool = True  # (1, 2) alone may also be a tuple, and [1, 2] a list


def read_regions(text: str) -> Region | None:
    """The region that `text` describes, or None."""
    shape = read_shape(text)
    if shape.kind == "list":
        return _joint(text, shape)
    return _region(shape)


def _joint(text: str, shape: Shape) -> Region | None:
    """x < 1 or x > 3 is a union, x > 1 and x < 3 what both have in common."""
    if any(r"\ne" in item for item in shape.items):
        return None
    parts = [_region(read_shape(item)) for item in shape.items]
    if not all(part is not None and part.certain for part in parts):
        return None
    either, both = (bool(re.search(rf"\b{word}\b", text)) for word in ("or", "and"))
    if either and not both:
        return _joined(parts)
    joined = _joined(parts)
    if not both or either or joined is None or len(joined.intervals) != 2:
        return None
    low, high = sorted(joined.intervals, key=lambda one: _INFINITY in one.low)
    if _INFINITY not in low.high or _INFINITY not in high.low or _INFINITY in low.low:
        return None
    return Region((Interval(low.low, high.high, low.low_open, high.high_open),), joined.variable)


def _region(shape: Shape) -> Region | None:
    if shape.kind == "atom" and squeezed(shape.items[0]) in (r"\mathbb{R}", "allrealnumbers"):
        return Region((Interval("-" + _INFINITY, _INFINITY, True, True),))
    if shape.kind == "interval":
        low_open, high_open = shape.signs[0] == "(", shape.signs[1] == ")"
        return Region((Interval(shape.items[0], shape.items[1], low_open, high_open),))
    if shape.kind in ("tuple", "bracket") and len(shape.items) == 2:
        is_open = shape.kind == "tuple"
        infinite = any(_INFINITY in item for item in shape.items)
        interval = Interval(shape.items[0], shape.items[1], is_open, is_open)
        return Region((interval,), certain=infinite)
    if shape.kind == "union":
        return _joined([_points(read_shape(item)) or read_regions(item) for item in shape.items])
    return _inequality(shape) if shape.kind == "relation" else None


def _points(shape: Shape) -> Region | None:
    r"""The points of a set in a union, as intervals: \{1\} is [1, 1]."""
    if shape.kind != "set":
        return None
    return Region(tuple(Interval(item, item, False, False) for item in shape.items))


def _joined(parts: list[Region | None]) -> Region | None:
    if any(part is None for part in parts):
        return None
    found = [part for part in parts if part is not None]
    names = {part.variable for part in found} - {""}
    if len(names) > 1:
        return None
    intervals = tuple(interval for part in found for interval in part.intervals)
    return Region(intervals, names.pop() if names else "")


def _inequality(shape: Shape) -> Region | None:
    items, signs = shape.items, shape.signs
    if signs == (r"\in",) and is_name(items[0]):
        inner = read_regions(items[1])
        return inner._replace(variable=squeezed(items[0]), certain=True) if inner else None
    if signs == (r"\ne",) and _is_variable(items[0]) and not _is_variable(items[1]):
        ends = ("-" + _INFINITY, items[1], _INFINITY)
        sides = tuple(Interval(*pair, True, True) for pair in pairwise(ends))
        return Region(sides, squeezed(items[0]))
    if not set(signs) <= {"<", ">", r"\le", r"\ge"}:
        return None
    if any(sign in (">", r"\ge") for sign in signs):  # read from right to left
        turn = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
        items, signs = items[::-1], tuple(turn[sign] for sign in signs[::-1])
        if any(sign in (">", r"\ge") for sign in signs):
            return None
    strict = [sign == "<" for sign in signs]
    if len(items) == 2 and _is_variable(items[0]) and not _is_variable(items[1]):
        is_open = strict[0] or _INFINITY in items[1]
        interval = Interval("-" + _INFINITY, items[1], True, is_open)
        return Region((interval,), squeezed(items[0]))
    if len(items) == 2 and _is_variable(items[1]) and not _is_variable(items[0]):
        return Region((Interval(items[0], _INFINITY, strict[0], True),), squeezed(items[1]))
    if len(items) == 3 and _is_variable(items[1]):
        interval = Interval(items[0], items[2], strict[0], strict[1])
        return Region((interval,), squeezed(items[1]))
    return None


def _is_variable(text: str) -> bool:
    return is_name(text) and squeezed(text) not in (r"\pi", "e", _INFINITY)


def same_regions(a: Region, b: Region, compare: Callable[[str, str], Decision]) -> Decision:
    """Whether two regions are equal; `compare` compares their ends."""
    if a.variable and b.variable and a.variable != b.variable:
        return wrong("different variables")
    first, second = _merged(a.intervals), _merged(b.intervals)
    if first is not None and second is not None:
        return right("equal regions") if first == second else _unequal(a, b, compare)
    if len(a.intervals) != len(b.intervals):
        if _touches(a) or _touches(b):
            return unknown("regions that may be equal")
        return wrong("not as many intervals")
    if len(a.intervals) == 1:
        return _same_interval(a.intervals[0], b.intervals[0], compare)
    found = [_same_interval(x, y, compare) for x, y in zip(a.intervals, b.intervals, strict=True)]
    decision = all_of(found, "equal regions")
    if decision.correct is False:
        turned = zip(a.intervals, b.intervals[::-1], strict=True)
        other = all_of([_same_interval(x, y, compare) for x, y in turned], "equal regions")
        return other if other.correct or len(a.intervals) == 2 else unknown("regions out of order")
    return decision


def _touches(region: Region) -> bool:
    """Whether one of the intervals may continue another."""
    ends = [(squeezed(one.low), squeezed(one.high)) for one in region.intervals]
    return any(a[1] == b[0] for a in ends for b in ends if a is not b)


def _unequal(a: Region, b: Region, compare: Callable[[str, str], Decision]) -> Decision:
    """Regions with different numeric ends: wrong, but for rounded ones."""
    if len(a.intervals) == len(b.intervals) == 1:
        return _same_interval(a.intervals[0], b.intervals[0], compare)
    return wrong("different regions")


def _same_interval(a: Interval, b: Interval, compare: Callable[[str, str], Decision]) -> Decision:
    if (a.low_open, a.high_open) != (b.low_open, b.high_open):
        return wrong("open against closed ends")
    return all_of([compare(a.low, b.low), compare(a.high, b.high)], "equal intervals")


_End = tuple[float | Fraction, int]


def _merged(intervals: tuple[Interval, ...]) -> list[tuple[_End, _End]] | None:
    """Numeric intervals in order, those that touch joined; None: an end is no number.

    An end is (value, side): side is 1 just above the value, -1 just below it and 0 at it.
    """
    found = []
    for one in intervals:
        low, high = _end(one.low), _end(one.high)
        if low is None or high is None:
            return None
        found.append(((low, int(one.low_open)), (high, -int(one.high_open))))
    merged: list[tuple[_End, _End]] = []
    for low_end, high_end in sorted(found):
        if merged and low_end <= (merged[-1][1][0], merged[-1][1][1] + 1):
            merged[-1] = (merged[-1][0], max(merged[-1][1], high_end))
        else:
            merged.append((low_end, high_end))
    return merged


def _end(text: str) -> float | Fraction | None:
    squeezed_text = squeezed(text).lstrip("+")
    if squeezed_text == _INFINITY:
        return float("inf")
    if squeezed_text == "-" + _INFINITY:
        return float("-inf")
    number = read_number(text)
    if number is None or number.percent or number.base:
        return None
    try:
        return number.value(10_000)
    except ValueError:
        return None
