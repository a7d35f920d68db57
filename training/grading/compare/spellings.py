"""Numbers written otherwise than in digits: 18k, XIV, third. They count where values agree.

An abbreviation, an ordinal or a Roman numeral may be something else: a variable, a fraction, a
word. So a step here decides where the other side is that very number, or is of the same kind. Else
it leaves the texts to the steps behind it.
"""

from __future__ import annotations

import re

from training.grading.compare.comparison import Comparison
from training.grading.reading.arithmetic import Number, read_number
from training.grading.reading.number_words import ordinal
from training.grading.reading.short_numbers import Roman, labelled_number, long_form, roman
from training.grading.reading.units import read_quantity
from training.grading.verdict import Decision, right, unknown, wrong

_BITS = 10_000


def abbreviations(by: Comparison, candidate: str, reference: str) -> Decision | None:
    """18k is 18000. 18000 for a reference of 18k cannot be told; 18k for 18 is left to others."""
    a, b = long_form(candidate), long_form(reference)
    if (a is None and b is None) or _is_its_unit(candidate, reference):
        return None
    decision = by.tried(a or candidate, b or reference)
    if decision is None or not decision.correct:
        return None
    if a is None and _may_be_a_product(reference):
        return unknown("a number of thousands or millions, or a product")
    return decision


def _may_be_a_product(reference: str) -> bool:
    """Whether a reference like 2k may be a formula: no currency, unit or decimals are in it."""
    return re.fullmatch(r"[+-]?\d[\d,]*[A-Za-z]", reference) is not None


def _is_its_unit(candidate: str, reference: str) -> bool:
    """Whether the letter of one side is the unit of the other: 2K and 2000 K are temperatures."""
    spaced = [re.search(r"\d\s+([A-Za-z])$", one) for one in (candidate, reference)]
    short, long = (candidate, spaced[1]) if spaced[1] else (reference, spaced[0])
    return long is not None and short.endswith(long[1])


def ordinals(_: Comparison, candidate: str, reference: str) -> Decision | None:
    """Third is 3rd and 3; it may be a third."""
    a, b = ordinal(candidate), ordinal(reference)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        return right("the same ordinal") if a == b else wrong("different ordinals")
    position, other = (a, reference) if a is not None else (b, candidate)
    number = read_number(other)
    if number is None and read_quantity(other) is not None:
        return wrong("an ordinal against a quantity")
    if number is None or number.base is not None or number.percent or position is None:
        return None
    if is_worth(number, position):
        return right("an ordinal and its number")
    if is_worth(number, 1, position):
        return unknown("an ordinal, or a fraction")
    return wrong("an ordinal against another number")


def romans(_: Comparison, candidate: str, reference: str) -> Decision | None:
    """XIV is 14 where the reference is Roman; a Roman answer to 14 cannot be told."""
    a, b = roman(candidate), roman(reference)
    if a is not None and b is not None:
        return _two_romans(a, b)
    if any(one is not None and one.alone for one in (a, b)):
        return None  # C, X and I are variables
    if b is not None:
        value = _value(candidate, b)
        if value is None or value != b.value:
            return wrong("another number") if value is not None and b.sure else None
        return right("a Roman numeral") if b.sure else unknown("a Roman numeral, or letters")
    if a is None:
        return None
    if a.label and (plain := labelled_number(reference)) is not None:
        same = plain == (a.label, a.value)
        return right("the same label") if same else wrong("another label")
    value = _value(reference, a)
    if value is None or value != a.value:
        return wrong("another number") if value is not None and a.sure else None
    if a.label:
        return right("a Roman numeral")
    sure = "a Roman numeral for a number" if a.sure else "a Roman numeral, or letters"
    return unknown(sure)


def _two_romans(a: Roman, b: Roman) -> Decision | None:
    if a.label and b.label and a.label != b.label:
        return wrong("another label")
    if a.sure or b.sure:
        return right("the same numeral") if a.value == b.value else wrong("different numerals")
    return None


def _value(text: str, beside: Roman) -> int | None:
    """The whole number that `text` is, with the label of the other side or without one."""
    labelled = labelled_number(text)
    if labelled is not None:
        return labelled[1] if beside.label in ("", labelled[0]) else -1
    number = read_number(text)
    if number is None or number.percent or number.base is not None:
        return None
    try:
        value = number.value(_BITS)
    except ValueError:
        return None
    return value.numerator if value.denominator == 1 else -1


def is_worth(number: Number, above: int, below: int = 1) -> bool:
    """Whether `number` is above / below, exactly."""
    try:
        return number.value(_BITS) * below == above
    except ValueError:
        return False
