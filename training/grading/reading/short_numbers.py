"""Numbers with a letter for their size, and Roman numerals: 18k, $1.5M, XIV, Quadrant II.

A letter may also be a variable, a unit or an option. What is read here counts only where the other
side has the same number (compare/spellings.py); nothing is guessed from the letter alone.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SIZES = {"k": 3, "K": 3, "M": 6, "mn": 6, "mil": 6, "B": 9, "bn": 9}
_MONEY_SIZES = _SIZES | {"m": 6, "b": 9, "T": 12, "tn": 12}
_SHORT = re.compile(
    r"(?P<sign>[+-]?)\s*(?:US\s+)?(?P<money>[A-Z]{3}|[€£¥₹])?\s*(?P<sign2>[+-]?)"
    r"(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)\s?(?P<size>[kKMBTmb]|bn|mn|mil|tn)"
    r"(?P<unit>\s+[A-Za-z ]+)?"
)
_ROMAN = re.compile(r"(?=.)M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_SURE = re.compile(r"[IVX]{2,}|.{4,}")  # other ones may be words, or products of variables
_LABELS = (
    "quadrant|chapter|part|section|type|case|figure|table|class|phase|stage|level|group|volume|"
    "book|act|scene|statement|step|article|question|problem|equation|method|system|region|zone"
)
_LABELLED = re.compile(rf"(?i)(?P<label>{_LABELS})\s+\(?(?P<number>[A-Za-z]+|\d+)\)?")
_CLOCK = re.compile(r"(?P<number>[IVX]+)\s*(?=o'clock|:|[ap]\.?m\.?$)")


class Roman(NamedTuple):
    """A Roman numeral, and whether it can be nothing else."""

    value: int
    sure: bool
    label: str = ""  # "quadrant" of "Quadrant II", in lower case
    alone: bool = False  # one letter without a label


def long_form(text: str) -> str | None:
    """18000 for "18k"; None: `text` is no number with such a letter."""
    match = _SHORT.fullmatch(text.strip())
    if match is None:
        return None
    sizes = _MONEY_SIZES if match["money"] else _SIZES
    size = sizes.get(match["size"])
    spaced = text.strip()[match.end("number")].isspace()
    if size is None or (spaced and len(match["size"]) == 1 and not match["money"]):
        return None  # "4 K" is a temperature, "3 M" a concentration
    whole, _, part = match["number"].replace(",", "").partition(".")
    digits = whole + part.ljust(size, "0")[:size]
    rest = part[size:]
    number = f"{digits.lstrip('0') or '0'}.{rest}" if rest.strip("0") else digits.lstrip("0") or "0"
    money = f"{match['money']} " if match["money"] else ""
    return f"{match['sign']}{money}{match['sign2']}{number}{match['unit'] or ''}"


def roman(text: str) -> Roman | None:
    """The Roman numeral that `text` may be; None: it cannot be one."""
    text = text.strip()
    labelled = _LABELLED.fullmatch(text)
    if labelled is not None and not labelled["number"].isdigit():
        found = _numeral(labelled["number"])
        if found is None or re.fullmatch("(?i)[lcdm]", labelled["number"]):
            return None
        return Roman(found, True, labelled["label"].lower())
    bare = text[1:-1].strip() if text[:1] == "(" and text[-1:] == ")" else text
    found = _numeral(bare)
    if found is None:
        return None
    sure = bare.isupper() and bool(_SURE.fullmatch(bare))
    return Roman(found, sure, alone=len(bare) == 1)


def labelled_number(text: str) -> tuple[str, int] | None:
    """("quadrant", 2) for "Quadrant 2"."""
    match = _LABELLED.fullmatch(text.strip())
    if match is None or not match["number"].isdigit():
        return None
    return match["label"].lower(), int(match["number"])


def clock_in_digits(text: str) -> str:
    """VII o'clock is 7 o'clock."""
    match = _CLOCK.match(text)
    value = _numeral(match["number"]) if match else None
    return text if match is None or value is None else f"{value}{text[match.end('number') :]}"


def _numeral(text: str) -> int | None:
    small = re.fullmatch(r"[ivxl]+", text)  # "mix" and "cm" are words
    if not (text.isupper() or small) or not _ROMAN.fullmatch(text.upper()):
        return None
    values = [_VALUES[letter] for letter in text.upper()]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return sum(-one if one < after else one for one, after in pairs)
