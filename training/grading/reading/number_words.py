r"""Numbers in words: "one hundred and five" is 105, "two and a half" is \frac{5}{2}.

in_digits("twenty-one apples")    # "21 apples"
in_digits("seven tenths")         # \frac{7}{10}
in_digits("fifty fifty")          # "fifty fifty": these words are no number
ordinal("twenty-first")           # 21
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
    "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: place for place, word in enumerate(_ONES)} | {
    word: 10 * (place + 2) for place, word in enumerate(_TENS)
}
_SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_IRREGULAR = {
    "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
}  # fmt: skip
_ORDINALS = (
    {f"{word}th": value for word, value in _SMALL.items() if 3 < value < 20}
    | {f"{word[:-1]}ieth": value for word, value in _SMALL.items() if value >= 20}
    | _IRREGULAR
)
_LARGE_ORDINALS = {"hundredth": 100} | {f"{word}th": value for word, value in _SCALES.items()}
_DENOMINATORS = {
    word: value for word, value in (_ORDINALS | _LARGE_ORDINALS).items() if value > 2
} | {"half": 2, "halve": 2, "quarter": 4}  # fmt: skip
_NUMBER_WORDS = frozenset([*_SMALL, *_SCALES, "hundred"])
# A word of a number, or one that makes another number of what stands before it.
PARTS = _NUMBER_WORDS | frozenset(
    [*_ORDINALS, *_LARGE_ORDINALS, "half", "halves", "quarter", "point"]
    + [f"{word}s" for word in [*_DENOMINATORS, *_SCALES, "ten", "hundred"]]
) - {"second"}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")
_DIGITS = re.compile(r"(?P<digits>\d[\d,]*)\s*(?:th|st|nd|rd)")
_STARTS = re.compile(r"(?i)\s*(?:minus |negative )?(?:a |an )?[A-Za-z]+")


_PARTS_OF_ONE = re.compile(rf"(?i)^(-?\d+)[- ]({'|'.join(_DENOMINATORS)})s$")  # 5 hundredths
_COUNTED = re.compile(
    rf"(?i)(?P<count>-?\d[\d,.]*)[- ](?:dozens?|(?:{'|'.join(_DENOMINATORS)})s)\b.*",
    re.DOTALL,
)


def _part_of_one(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1]}}}{{{_DENOMINATORS[match[2].lower()]}}}"


class _Words(NamedTuple):
    """The words of a text, in lower case, and where each ends."""

    words: list[str]
    ends: list[int]

    @classmethod
    def of(cls, text: str) -> _Words:
        """The words at the start of `text` that stand apart by one space or hyphen."""
        words: list[str] = []
        ends: list[int] = []
        place = 0
        while match := _WORD.match(text, place):
            words.append(match[0].lower())
            ends.append(match.end())
            place = match.end()
            gap = re.match(r"-|\s+", text[place:])
            if gap is None:
                break
            place += gap.end()
        return cls(words, ends)


def in_digits(text: str) -> str:
    """`text` with the number at its start in digits; unchanged if its words are no number."""
    if not _STARTS.match(text):
        return _PARTS_OF_ONE.sub(_part_of_one, text)
    found = _Words.of(text)
    words = found.words
    sign = ""
    start = 0
    if words and words[0] in ("minus", "negative"):
        sign, start = "-", 1
    read = _number(words, start)
    if read is None:
        return text
    value, end = read
    if end < len(words) and (words[end] in PARTS or words[end] in ("and", "or", "to", "than")):
        return text  # "fifty fifty", "one or two", "one hundred and"
    written = str(value) if value.denominator == 1 else _fraction(value)
    return sign + written + text[found.ends[end - 1] :]


def count_of_parts(text: str) -> str | None:
    """The 16 of "16 quarters" and the 7 of "7 dozen eggs", which are 4 and 84, or so many of them.

    None: the text is another one. "Three quarters" is a number, and no count.
    """
    match = _COUNTED.fullmatch(text.strip()) or _COUNTED.fullmatch(in_digits(text.strip()))
    return match["count"] if match else None


def _fraction(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _number(words: list[str], start: int) -> tuple[Fraction, int] | None:
    """The number whose words begin at `start`, and where they end."""
    if words[start : start + 1] in (["a"], ["an"]):
        return _with_article(words, start)
    whole = _cardinal(words, start)
    if whole is None:
        return None
    value, end = Fraction(whole[0]), whole[1]
    rest = words[end:]
    if rest[:1] == ["point"]:
        return _decimals(words, end, value)
    if rest[:2] == ["and", "a"] and rest[2:3] and rest[2] in _DENOMINATORS:
        return value + Fraction(1, _DENOMINATORS[rest[2]]), end + 3
    if rest[:1] == ["and"]:
        part = _cardinal(words, end + 1)
        below = _denominator(words, part)
        if part is None or below is None:
            return None
        return value + Fraction(part[0], below), part[1] + 1
    below = _denominator(words, whole)
    return (value / below, end + 1) if below else (value, end)


def _with_article(words: list[str], start: int) -> tuple[Fraction, int] | None:
    """A hundred, a thousand and five, a third, a dozen."""
    rest = words[start + 1 :]
    if rest[:1] == ["dozen"]:
        return Fraction(12), start + 2
    if rest[:1] and (rest[0] == "hundred" or rest[0] in _SCALES):
        return _number([*words[:start], "one", *rest], start)
    if len(rest) == 1 and rest[0] in _DENOMINATORS:
        return Fraction(1, _DENOMINATORS[rest[0]]), start + 2
    return None


def _denominator(words: list[str], above: tuple[int, int] | None) -> int | None:
    """What the word behind a numerator divides by: tenths by 10; None: it is no denominator."""
    if above is None or above[1] >= len(words):
        return None
    word = words[above[1]]
    if above[0] == 1:
        return _DENOMINATORS.get(word)
    if above[0] % 10 == 0 and above[0] and word.rstrip("s") in _IRREGULAR:
        return None  # twenty-fifths: 20/5, or 25ths?
    singular = word.removesuffix("s")
    return _DENOMINATORS.get(singular) if singular != word else None


def _decimals(words: list[str], place: int, whole: Fraction) -> tuple[Fraction, int] | None:
    """Two point five: digits behind the word "point"."""
    digits = ""
    place += 1
    while place < len(words) and _SMALL.get(words[place], 10) < 10:
        digits += str(_SMALL[words[place]])
        place += 1
    return (whole + Fraction(int(digits), 10 ** len(digits)), place) if digits else None


def _cardinal(words: list[str], start: int) -> tuple[int, int] | None:
    """The whole number whose words begin at `start`, and where they end; None: there is none."""
    total, scale = 0, 10**15
    place = start
    while (group := _below_thousand(words, place, total > 0)) is not None:
        value, after = group
        if not value and total:
            break  # "one thousand zero"
        place = after
        if value and place < len(words) and _SCALES.get(words[place], scale) < scale:
            scale = _SCALES[words[place]]
            total += value * scale
            place += 1
            continue
        return total + value, place
    return (total, place) if total else None


def _below_thousand(words: list[str], place: int, joined: bool) -> tuple[int, int] | None:
    """One group of digits: 105 of "one hundred and five"; `joined`: "and" may stand before it."""
    if joined and words[place : place + 1] == ["and"]:
        inner = _below_hundred(words, place + 1)
        below = _denominator(words, inner)
        return None if below else inner
    first = _below_hundred(words, place)
    if first is None:
        return None
    value, place = first
    if not value or words[place : place + 1] != ["hundred"]:
        return first
    value, place = 100 * value, place + 1
    after = place + (words[place : place + 1] == ["and"])
    rest = _below_hundred(words, after)
    if rest is None or not rest[0] or _denominator(words, rest):
        return value, place
    return value + rest[0], rest[1]


def _below_hundred(words: list[str], place: int) -> tuple[int, int] | None:
    if place >= len(words) or words[place] not in _SMALL:
        return None
    value = _SMALL[words[place]]
    more = _SMALL.get(words[place + 1], 0) if place + 1 < len(words) else 0
    return (value + more, place + 2) if value >= 20 and 0 < more < 10 else (value, place + 1)


def ordinal(text: str) -> int | None:
    """The number of "third", "the 3rd" or "twenty-first"; None: it is no ordinal."""
    text = re.sub(r"(?i)^the\s+", "", text.strip()).strip()
    digits = _DIGITS.fullmatch(text)
    if digits is not None:
        return int(digits["digits"].replace(",", ""))
    found = _Words.of(text)
    if not found.words or found.ends[-1] != len(text):
        return None
    *before, last = found.words
    if last in _ORDINALS:
        value = _ORDINALS[last]
        cardinal = "zero" if not before else _cardinal_word(value)
    elif last in _LARGE_ORDINALS:
        value, cardinal = 0, last.removesuffix("th")
        before = before or ["one"]
    else:
        return None
    if not before:
        return value
    whole = _cardinal([*before, cardinal], 0)
    return whole[0] if whole is not None and whole[1] == len(before) + 1 else None


def _cardinal_word(value: int) -> str:
    return next(word for word, number in _SMALL.items() if number == value)
