"""Numbers with units, and times of the day and dates."""

from __future__ import annotations

from fractions import Fraction

from training.grading.compare.comparison import Comparison
from training.grading.compare.numbers import is_rounded
from training.grading.reading import dates
from training.grading.reading.arithmetic import IrrationalError, TooLargeError, UndefinedError
from training.grading.reading.units import Quantity, read_quantity, without_unit
from training.grading.verdict import Decision, right, unknown, wrong


def moments(_: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = dates.time_of_day(candidate), dates.time_of_day(reference)
    if a is not None and b is not None:
        return _times(a, b, candidate, reference)
    days = dates.dates(candidate), dates.dates(reference)
    return _days(*days) if all(days) else None


def quantities(by: Comparison, candidate: str, reference: str) -> Decision | None:
    a, b = read_quantity(candidate), read_quantity(reference)
    if a is None or b is None or not (a.unit or b.unit or a.scale != b.scale):
        shorn = without_unit(candidate), without_unit(reference)
        if shorn == (candidate, reference):
            return None
        units = candidate[len(shorn[0]) :].strip(), reference[len(shorn[1]) :].strip()
        if all(units) and read_quantity(f"1 {units[0]}") != read_quantity(f"1 {units[1]}"):
            return None
        return by.inner(*shorn)
    try:
        x, y = a.value(by.effort.bits), b.value(by.effort.bits)
    except (IrrationalError, TooLargeError):
        return by.inner(a.text, b.text) if _units(a, b) else unknown("units differ")
    except UndefinedError as error:
        return wrong(f"{error}")
    if a.number.percent != b.number.percent:
        return None
    if a.number.base != b.number.base:
        return unknown("equal numbers in different bases") if x == y else wrong("different numbers")
    if a.unit and b.unit:
        return _with_units(a, x, b, y)
    if x != y:
        rounded = is_rounded(a.number, x, b.number, y)
        return unknown("equal up to rounding") if rounded else wrong("different numbers")
    if a.doubtful or b.doubtful:
        return unknown("the letter may be a unit or a variable")
    return right("equal numbers")


def _times(a: int, b: int, candidate: str, reference: str) -> Decision:
    if a % 86400 == b % 86400:
        return right("the same time")
    if a % 43200 == b % 43200 and not (dates.half_named(candidate) and dates.half_named(reference)):
        return unknown("the half of the day is not named")
    return wrong("different times")


def _days(a: frozenset[dates.Moment], b: frozenset[dates.Moment]) -> Decision:
    years = [{moment[0] for moment in one} for one in (a, b)]
    if None in years[0] | years[1]:
        a, b = (frozenset((None, *moment[1:]) for moment in one) for one in (a, b))
    if not a & b:
        return wrong("different dates")
    if years[0] != years[1] and None in years[0] | years[1]:
        return unknown("only one side names the year")
    return right("the same date") if a == b else unknown("day and month may be exchanged")


def _units(a: Quantity, b: Quantity) -> bool:
    """Whether the units of two quantities can stand for each other unchanged."""
    return (not a.unit or not b.unit or (a.unit, a.factor) == (b.unit, b.factor)) and (
        a.scale == b.scale
    )


def _with_units(a: Quantity, x: Fraction, b: Quantity, y: Fraction) -> Decision:
    degrees = _kelvins(a, x), _kelvins(b, y)
    if a.unit != b.unit and None not in degrees:
        same = degrees[0] == degrees[1]
        return right("the same temperature") if same else wrong("different temperatures")
    if None in degrees and degrees != (None, None) and (("angle", 1),) in (a.unit, b.unit):
        return right("the same temperature") if x == y else wrong("different temperatures")
    if a.unit == b.unit:
        same = x * a.factor == y * b.factor
        return right("equal quantities") if same else wrong("different quantities")
    if x != y or (a.known and b.known):
        return wrong("different units")
    return unknown("equal numbers of different things")


def _kelvins(a: Quantity, x: Fraction) -> Fraction | None:
    """The temperature in kelvins; None: the quantity is no temperature."""
    names = {name: power for name, power in a.unit if (name, power) != ("angle", 1)}
    if names == {"celsius": 1}:
        return x + Fraction(27315, 100)
    if names == {"fahrenheit": 1}:
        return (x + Fraction(45967, 100)) * Fraction(5, 9)
    return x if names == {"temperature": 1} else None
