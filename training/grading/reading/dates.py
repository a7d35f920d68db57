"""Times of the day and dates: 3:30 PM is 15:30, March 5, 2021 is 2021-03-05."""

from __future__ import annotations

import datetime
import re
from functools import lru_cache

from training.grading.reading.number_words import in_digits

MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
]  # fmt: skip
_MONTH = {name[:length]: place for place, name in enumerate(MONTHS, 1) for length in (3, 4, 20)}
_TIME = re.compile(
    r"(?i)(?P<hour>\d{1,2})\s*(?:[:h]\s*(?P<minute>\d\d)(?:\s*:\s*(?P<second>\d\d))?)?"
    r"\s*(?P<half>[ap]\.?\s?m\.?|noon|midnight|o'clock)?"
)
_POINTED = re.compile(r"(?i)^(\d{1,2})\.(\d\d)\s*(?=[ap]\.?\s?m)")  # 2.30 pm
_SPOKEN = re.compile(
    r"(?i)(?:a\s+)?(half|quarter)\s+(past|after|to|before|of)\s+([a-z]+|\d{1,2})(?:\s+o'clock)?"
)
_NAMED = re.compile(
    r"(?i)(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
    r"(?:(?P<month>[a-z]{3,9})\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"|(?P<day2>\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month2>[a-z]{3,9})\.?)"
    r"(?:,?\s+(?P<year>\d{4}))?"
)
_NUMERIC = re.compile(r"(?P<a>\d{1,4})([-/.])(?P<b>\d{1,2})\2(?P<c>\d{1,4})")

Moment = tuple[object, ...]


@lru_cache(maxsize=4096)
def time_of_day(text: str) -> int | None:
    """Seconds since midnight, or None if `text` is no time: "3:30 PM", "15:30", "noon"."""
    text = text.strip().rstrip(".")
    if text.lower() in ("noon", "12 noon", "12:00 noon"):
        return 43200
    if text.lower() in ("midnight", "12 midnight"):
        return 0
    text = _POINTED.sub(r"\1:\2 ", text)
    if spoken := _SPOKEN.fullmatch(text):
        return _spoken(*spoken.groups())
    match = _TIME.fullmatch(text)
    if match is None or (match["minute"] is None and match["half"] is None):
        return None
    hour, minute, second = int(match["hour"]), int(match["minute"] or 0), int(match["second"] or 0)
    half = (match["half"] or "").lower()[:1]
    if minute > 59 or second > 59 or hour > 24 or (half in ("a", "p") and not 1 <= hour <= 12):
        return None
    if half in ("a", "p"):
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour * 3600 + minute * 60 + second


def _spoken(part: str, side: str, hour: str) -> int | None:
    """Seconds since midnight of "half past two", "quarter to 3"."""
    hour = in_digits(hour)
    if not hour.isdigit() or not 1 <= int(hour) <= 12:
        return None
    minutes = 30 if part.lower() == "half" else 15
    before = side.lower() in ("to", "before", "of")
    return (int(hour) * 3600 - minutes * 60 if before else int(hour) * 3600 + minutes * 60) % 86400


def half_named(text: str) -> bool:
    """Whether the time says which half of the day it means, or needs not to (15:30)."""
    return bool(re.search(r"(?i)[ap]\.?\s?m|noon|midnight", text)) or bool(
        re.match(r"\s*(?:0|1[3-9]|2)\d?:", text) and not re.match(r"\s*2:", text)
    )


@lru_cache(maxsize=4096)
def dates(text: str) -> frozenset[Moment]:
    """The dates that `text` may mean, as (year or None, month, day); empty if it is none.

    03/04/2021 may be in March or in April.
    """
    text = re.sub(r"\s+", " ", text.strip().rstrip("."))
    if match := _NAMED.fullmatch(text):
        name = (match["month"] or match["month2"]).lower()
        month = _MONTH.get(name) or (_MONTH.get(name[:3]) if name[:4] in _MONTH else None)
        if month is None or name not in (MONTHS[month - 1], name[:3], name[:4]):
            return frozenset()
        day = int(match["day"] or match["day2"])
        year = int(match["year"]) if match["year"] else None
        return frozenset([(year, month, day)]) if _exists(year, month, day) else frozenset()
    if match := _NUMERIC.fullmatch(text):
        a, b, c = int(match["a"]), int(match["b"]), int(match["c"])
        if len(match["a"]) == 4:
            orders = [(a, b, c)]
        elif len(match["c"]) == 4:
            orders = [(c, a, b), (c, b, a)]
        else:
            return frozenset()
        return frozenset(one for one in orders if _exists(*one))
    return frozenset()


def _exists(year: int | None, month: int, day: int) -> bool:
    try:
        datetime.date(year or 2000, month, day)
    except ValueError:
        return False
    return True
