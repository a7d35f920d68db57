r"""Numbers with what they count: "18 dollars", "$18", "5 cm", "12 apples", "3 million".

A unit that one side leaves out is no difference: the question names it. Two units must agree:
5 m is 500 cm and not 5 km. Of units that are not in the table (apples), the words must agree.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from training.grading.reading.arithmetic import Node, Number, read_number
from training.grading.reading.chinese import in_english
from training.grading.reading.number_words import PARTS, in_digits
from training.grading.reading.short_numbers import clock_in_digits

_F = Fraction
# Dimension -> unit -> how many of the dimension's first unit it is.
_TABLE: dict[str, dict[str, Fraction | int]] = {
    "length": {
        "m meter metre": 1, "km kilometer kilometre": 1000, "cm centimeter centimetre": _F(1, 100),
        "mm millimeter millimetre": _F(1, 1000), "dm decimeter": _F(1, 10),
        "um micrometer": _F(1, 10**6), "nm nanometer": _F(1, 10**9),
        "inch inches in": _F(254, 10000), "ft foot feet": _F(3048, 10000),
        "yd yard": _F(9144, 10000), "mi mile": _F(1609344, 1000),
    },
    "mass": {
        "g gram gm": 1, "kg kilogram kilo": 1000, "mg milligram": _F(1, 1000), "t ton tonne": 10**6,
        "lb lbs pound": _F(45359237, 100000), "oz ounce": _F(45359237, 1600000),
    },
    "time": {
        "s sec second": 1, "ms millisecond": _F(1, 1000), "min minute": 60, "h hr hour": 3600,
        "day": 86400, "week": 604800,
    },
    "month": {"month": 1, "year yr": 12},
    "volume": {
        "l L liter litre": 1, "ml mL milliliter millilitre cc": _F(1, 1000),
        "gal gallon": _F(3785411784, 10**9),
    },
    "money": {"USD dollar usd buck": 1, "cent ¢ penny pennies": _F(1, 100)},
    "euro": {"€ EUR euro": 1}, "pound": {"£ GBP": 1}, "yen": {"¥ JPY yen": 1},
    "rupee": {"₹ Rs Rs. INR rupee": 1},
    **{one.lower(): {one: 1} for one in ["CAD", "AUD", "NZD", "HKD", "SGD", "CHF", "KRW"]},
    "yuan": {"CNY RMB yuan": 1},
    "angle": {"\\circ degree deg": 1, "radian rad": 0},
    "celsius": {"C celsius": 1}, "fahrenheit": {"F fahrenheit": 1},
    "force": {"N newton": 1}, "energy": {"J joule": 1, "kJ": 1000, "eV": 0, "erg": _F(1, 10**7)},
    "power": {"W watt": 1, "kW": 1000}, "pressure": {"Pa pascal": 1, "kPa": 1000},
    "voltage": {"V volt": 1}, "current": {"A ampere amp": 1}, "temperature": {"K kelvin": 1},
    "amount": {"mol mole": 1}, "frequency": {"Hz hertz": 1}, "unit": {"unit": 1},
}  # fmt: skip
_KNOWN: dict[str, tuple[str, Fraction]] = {
    name: (dimension if value else name, Fraction(value or 1))
    for dimension, units in _TABLE.items()
    for names, value in units.items()
    for name in names.split()
}
_COMPOUND = {
    "mph": "mile / hour", "kmph": "km / hour", "kmh": "km / hour", "kph": "km / hour", "sqm": "m^2",
    "sqft": "ft^2", "fps": "ft / s",
}  # fmt: skip
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "dozens": 12,
}  # fmt: skip
# Words behind a number that make it another number, or no number at all.
_FORBIDDEN = frozenset([
    "than", "more", "less", "fewer", "or", "and", "not", "to", "from", "plus", "minus",
    "times", "over", "squared", "cubed", "factorial", "half", "halves", "third", "thirds",
    "quarter", "quarters", "fourths", "fifths", "if", "but", "is", "was", "equals",
    "equal", "divided", "by", "mod", "modulo", "base", "except", "then", "about", "least",
    "most", "maybe", "perhaps", "possibly", "between", "because", "so", "answer", "power",
    "root", "remainder", "choose", "percent", "sqrt", "pi", "wait", "no",
]) | (PARTS - frozenset(_SCALES))  # fmt: skip
_PADDING = frozenset([
    "a", "an", "the", "of", "in", "total", "altogether", "each", "all", "exactly", "only",
    "long", "wide", "high", "old",
])  # fmt: skip
_LETTERS = frozenset("msghlLtNJWVAKCF")  # units of one letter, which may also be variables

_HEAD = re.compile(
    r"(?P<number>[+-]?(?:\\(?:frac|sqrt|times|cdot|binom|overline)(?![A-Za-z])|[\d\s.,+\-*/^!(){}\[\]]"
    r"|(?<=\d)[eE](?=[+-]?\d)|(?<=[\d\s])x(?=\s*10))+)(?P<unit>.*)",
    re.DOTALL,
)
_BEFORE = re.compile(
    r"^(?P<sign>[+-]?)\s*(?P<money>USD|US\s*USD|€|£|¥|₹|EUR|GBP|JPY|INR|CAD|AUD|NZD|HKD|SGD|CHF|KRW|CNY|RMB|Rs\.?)\s*(?P<rest>[+-]?[\d.\\(].*)$"
)
_WORD = re.compile(
    r"\s*(?:(?P<word>\\circ|[A-Za-z€£¥₹¢]+\.?)|(?P<power>\^\s*\{?\s*(?P<exponent>-?\d+)\s*\}?)|(?P<by>/|\\cdot|\\times|\*|-))"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


class Quantity(NamedTuple):
    """A number and its unit."""

    number: Number
    scale: Fraction  # of "million", say
    unit: tuple[tuple[str, int], ...]  # dimension and power, in order; empty: none was written
    factor: Fraction  # of the unit, against the first of its dimension
    doubtful: bool = False  # the unit is one letter that may be a variable
    text: str = ""  # the number as written

    def value(self, bits: int) -> Fraction:
        """The number, with its scale, in the unit that was written."""
        return self.number.value(bits) * self.scale

    @property
    def known(self) -> bool:
        """Whether every part of the unit is in the table."""
        return all(name in _DIMENSIONS for name, _ in self.unit)


_DIMENSIONS = frozenset(dimension for dimension, _ in _KNOWN.values())


@lru_cache(maxsize=65536)
def read_quantity(text: str) -> Quantity | None:
    """The number and unit that `text` (as `plain` writes it) is; None if it is something else."""
    text = text.strip()
    before = _BEFORE.match(text)
    money = ""
    if before:
        money = " ".join(before["money"].split()[-1:])
        text = before["sign"] + before["rest"]
    plain_number = read_number(text)
    if plain_number is not None:
        dimension, factor = _KNOWN.get(money, (money, Fraction(1)))
        written = ((dimension, 1),) if money else ()
        return Quantity(plain_number, Fraction(1), written, factor, text=text)
    head = _HEAD.fullmatch(text)
    if head is None:
        return _duration(text)
    digits, rest = head["number"], head["unit"]
    while digits and digits[-1] in "^{( -/*":  # these belong to the unit: ^\circ, (cm)
        rest, digits = digits[-1] + rest, digits[:-1]
    number = read_number(digits.strip().rstrip(","))
    if number is None:
        return _duration(text)
    found = _unit(rest, digits)
    if found is None:
        return _duration(text)
    unit, factor, scale, doubtful = found
    if money and not unit:
        dimension, factor = _KNOWN.get(money, (money, Fraction(1)))
        unit = ((dimension, 1),)
    return Quantity(number, scale, unit, factor, doubtful, digits.strip())


def _unit(
    text: str, digits: str
) -> tuple[tuple[tuple[str, int], ...], Fraction, Fraction, bool] | None:
    """(unit, its factor, scale, doubtful) of the words behind a number."""
    spaced = digits[-1:].isspace() or text[:1].isspace() or text[:1] in "^("
    text = text.strip().strip("()").strip()
    text = text[1:] if text.startswith("^") and "circ" in text[:8] else text
    if not text or re.search(
        r"\d(?!\s*\}?\s*(?:$|[A-Za-z/\s\\}.]))", re.sub(r"\^\s*\{?-?\d\}?", "", text)
    ):
        return None
    for name, form in _COMPOUND.items():
        text = re.sub(rf"^{name}\b", form, text)
    text = re.sub(r"(?i)^(?:square|sq\.?)\s+([A-Za-z]+)", r"\1^2", text)
    text = re.sub(r"(?i)^cubic\s+([A-Za-z]+)", r"\1^3", text)
    unit, factor, scale = Counter[str](), Fraction(1), Fraction(1)
    place, sign, last, words = 0, 1, "", 0
    while place < len(text):
        match = _WORD.match(text, place)
        if match is None:
            return None
        place = match.end()
        if match["by"]:
            sign = -1 if match["by"] == "/" else sign
            last = ""
            continue
        if match["power"]:
            if last not in _KNOWN:
                return None
            exponent = int(match["exponent"])
            dimension, size = _KNOWN[last]
            unit[dimension] += sign * (exponent - 1)
            factor *= size ** (sign * (exponent - 1))
            continue
        word = match["word"].rstrip(".")
        words += 1
        if word.lower() in _FORBIDDEN or words > 8:
            return None
        if word.lower() in _SCALES and not unit:
            scale *= _SCALES[word.lower()]
            continue
        if word.lower() == "per":
            sign = -1
            continue
        if word.lower() in _PADDING and (unit or scale != 1):
            continue
        last = singular(word)
        dimension, size = _KNOWN.get(last, (last.lower(), Fraction(1)))
        if len(word) == 1 and word not in _KNOWN:
            return None  # a variable
        unit[dimension] += sign
        factor *= size**sign
    doubtful = len(text) == 1 and text in _LETTERS and not spaced
    return tuple(sorted((k, v) for k, v in unit.items() if v)), factor, scale, doubtful


_UNIT_AT_END = re.compile(
    r"(?P<rest>.*[\w)}])\s+(?P<unit>(?:(?:square|cubic|sq\.?)\s+)?(?P<word>[A-Za-z]{2,})"
    r"(?:\s*\^\s*\{?\d\}?)?(?:\s*(?:/|per)\s*[A-Za-z]+(?:\s*\^\s*\{?\d\}?)?)?)",
    re.DOTALL,
)


def without_unit(text: str) -> str:
    """A formula without the unit at its end: 5\\pi cm^2 is 5\\pi."""
    match = _UNIT_AT_END.fullmatch(text)
    if match is None or singular(match["word"]) not in _KNOWN or not re.search(r"\d|\\", text):
        return text
    return match["rest"].strip()


def singular(word: str) -> str:
    """The unit's name in the table, or the word without its plural."""
    for form in (word, word.lower()):
        if form in _KNOWN:
            return form
        for ending in ("s", "es"):
            if form.endswith(ending) and form[: -len(ending)] in _KNOWN and len(form) > 2:
                return form[: -len(ending)]
    form = word.lower()
    if form.endswith("ies") and len(form) > 4:
        return form[:-3] + "y"
    return form[:-1] if form.endswith("s") and not form.endswith("ss") and len(form) > 3 else form


def _duration(text: str) -> Quantity | None:
    """2 hours 30 minutes, in seconds; 5 feet 3 inches, in metres."""
    parts = _DURATION.findall(text)
    rest = _DURATION.sub("", text).replace("and", "").replace(",", "").strip()
    if len(parts) < 2 or rest:
        return None
    total, dimensions = Fraction(0), set()
    hours = False
    for digits, word in parts:
        name = singular(word)
        name = "min" if name == "m" and hours else name  # 2h 30m
        hours = hours or name in ("h", "hr", "hour")
        if name not in _KNOWN:
            return None
        dimension, size = _KNOWN[name]
        dimensions.add(dimension)
        total += Fraction(digits) * size
    if len(dimensions) != 1:
        return None
    number = Number(Node("number", number=total))
    return Quantity(number, Fraction(1), ((dimensions.pop(), 1),), Fraction(1))


_N = r"(-?\d[\d,]*(?:\.\d+)?)"
_PHRASES = [
    (re.compile(pattern, re.IGNORECASE), form)
    for pattern, form in [
        (r"(?:so\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*:?\s*(.*)", r"\1"),
        (r"\\approx\s*(.*)", r"\1"),
        (r"(.*\S)\s+only", r"\1"),
        (r"(?:the\s+set\s+of\s+)?(?:all\s+)?real\s+numbers|all\s+reals", r"\\mathbb{R}"),
        (r"(?:the\s+set\s+of\s+)?all\s+integers", r"\\mathbb{Z}"),
        (rf"{_N}\s+to\s+{_N}", r"\1:\2"),
        (r"(?:approximately|approx\.?|about|roughly|around|exactly|precisely)\s+(.*)", r"\1"),
        (rf"{_N}\s+(?:more\s+than|plus|added\s+to)\s+{_N}", r"\1+\2"),
        (rf"{_N}\s+(?:less|fewer)\s+than\s+{_N}", r"\2-\1"),
        (rf"{_N}\s+minus\s+{_N}", r"\1-\2"),
        (rf"{_N}\s+(?:times|multiplied\s+by)\s+{_N}", r"\1*\2"),
        (rf"{_N}\s+(?:divided\s+by|over|out\s+of)\s+{_N}", r"\\frac{\1}{\2}"),
        (rf"{_N}\s+squared", r"(\1)^2"),
        (rf"{_N}\s+cubed", r"(\1)^3"),
        (rf"{_N}\s+factorial", r"(\1)!"),
        (rf"{_N}\s+to\s+the\s+(?:power\s+(?:of\s+)?)?{_N}(?:th\s+power|th)?", r"(\1)^{\2}"),
        (rf"half\s+of\s+{_N}", r"\\frac{\1}{2}"),
        (rf"(?:negative|minus)\s+{_N}", r"-\1"),
        (r"(?:the\s+)?(?:square\s+)?root\s+of\s+(\d+)", r"\\sqrt{\1}"),
        (r"half\s+a\s+dozen(.*)", r"6\1"),
        (r"half", r"\\frac{1}{2}"),
    ]
]


def spelled(text: str) -> str:
    """`text` with numbers in words as digits: "five apples" is "5 apples", "6 squared" is (6)^2."""
    text = in_digits(clock_in_digits(in_english(text)))
    for pattern, form in _PHRASES:
        found = pattern.fullmatch(text)
        if found:
            return found.expand(form)
    return text
