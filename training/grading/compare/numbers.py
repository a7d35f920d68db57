"""Numbers, exactly: 1/2 and 0.5, 203_5, 12 and 12%, 10^{10^{10}}."""

from __future__ import annotations

import re
from fractions import Fraction

from training.grading.compare.comparison import Comparison, NeedsWorkerError
from training.grading.reading.arithmetic import (
    IrrationalError,
    Number,
    TooLargeError,
    UndefinedError,
    read_number,
)
from training.grading.reading.plain_latex import squeezed
from training.grading.verdict import Decision, all_of, right, unknown, wrong

_FRACTION = re.compile(r"\\frac\{\d+\}\{\d+\}|\d+\s*/\s*\d+")
_TIMES = re.compile(r":\s*\d\d(?!\d)")  # 12:30 may be a time
_NUMERAL_BITS = 50_000  # no numeral in a base has more


def numbers(by: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = read_number(candidate), read_number(reference)
    if a is None or b is None:
        return None
    if a.base is not None or b.base is not None:
        return _numerals(a, b, candidate, reference)
    return number_values(by, a, b)


def number_values(by: Comparison, a: Number, b: Number) -> Decision | None:
    try:
        x, y = by.value(a), by.value(b)
    except IrrationalError:
        return None  # algebra
    except UndefinedError as error:
        return wrong(f"{error}")
    except TooLargeError:
        return _large(by, a, b)
    if a.percent == b.percent:
        same = x == y
    else:
        part, whole = (x, y) if a.percent else (y, x)
        same = part == whole or part == 100 * whole
    if same:
        return right("equal numbers")
    if a.percent == b.percent and is_rounded(a, x, b, y):
        return unknown("equal up to rounding")
    if a.percent != b.percent and is_rounded(_hundredths(a), part / 100, _hundredths(b), whole):
        return unknown("equal up to rounding")
    return wrong("different numbers")


def _hundredths(number: Number) -> Number:
    """33.33% as 0.3333, as far as its digits go; a number without the sign as it is."""
    if not number.percent or number.decimals is None:
        return number
    return number._replace(decimals=number.decimals + 2)


def _large(by: Comparison, a: Number, b: Number) -> Decision:
    """Numbers with more digits than are computed here."""
    if not by.effort.algebra:
        raise NeedsWorkerError
    from training.grading.compare.residues import equal

    same = equal(a.node, b.node)
    if same is None or (a.percent != b.percent and not same):
        return unknown("numbers too large to compute")
    return right("equal numbers") if same else wrong("different numbers")


def ratios(by: Comparison, candidate: str, reference: str) -> Decision | None:
    """2:3 is 4:6; 12:00 and 24:00 may be ratios or times."""
    a, b = ([part.strip() for part in text.split(":")] for text in (candidate, reference))
    if len(a) < 2 and len(b) < 2:
        return None
    numbers = [[read_number(part) for part in one] for one in (a, b)]
    if any(number is None for one in numbers for number in one):
        return None
    if len(a) == 1 or len(b) == 1:
        single, pair = (a, b) if len(a) == 1 else (b, a)
        if len(pair) != 2:
            return wrong("one value against several")
        found = by.inner(single[0], rf"\frac{{{pair[0]}}}{{{pair[1]}}}")
        if not found.correct:
            return found
        if single is a and _FRACTION.fullmatch(single[0]) and not _TIMES.search(reference):
            return right("the ratio as a fraction")
        return unknown("a ratio against a number")
    if len(a) != len(b):
        return wrong("not as many values")
    if any(is_zero(by, number) for one in numbers for number in one):
        return by.in_order(a, b) if a[0] == b[0] else unknown("ratios with a zero")
    crossed = [(rf"({a[0]})({y})", rf"({b[0]})({x})") for x, y in zip(a[1:], b[1:], strict=True)]
    return all_of([by.inner(x, y) for x, y in crossed], "equal ratios")


def is_zero(by: Comparison, number: Number | None) -> bool:
    """Whether a number is 0."""
    try:
        return number is not None and by.value(number) == 0
    except ValueError:
        return False


def _numerals(a: Number, b: Number, candidate: str, reference: str) -> Decision:
    """Numbers of which one at least is written in a base: 203_5."""
    try:
        x, y = a.value(_NUMERAL_BITS), b.value(_NUMERAL_BITS)
    except TooLargeError:
        return unknown("numbers too large to compute")
    except (IrrationalError, UndefinedError):
        return wrong("different numbers")
    if a.base == b.base:
        return right("equal numbers") if x == y else wrong("different numbers")
    digits = [re.sub(r"_.*", "", squeezed(one)).strip("()") for one in (candidate, reference)]
    if x == y:
        return unknown("equal numbers in different bases")
    if digits[0] == digits[1] and None in (a.base, b.base):
        return unknown("the same digits, but only one side states the base")
    return wrong("different numbers")


def is_rounded(a: Number, x: Fraction, b: Number, y: Fraction) -> bool:
    """Whether one value is the other, rounded or cut to a few decimals.

    Only a decimal with at least four digits can round a reference that is no decimal, and only a
    reference with at least three can be the rounding of an answer with more.
    """
    if a.decimals and b.decimals is None and a.digits >= 4:
        return abs(x - y) < Fraction(1, 10**a.decimals)
    if b.decimals and b.digits >= 3 and (a.decimals is None or a.decimals > b.decimals):
        return abs(x - y) <= Fraction(1, 2 * 10**b.decimals)
    return False
