r"""Answers in Chinese: numbers, units, dates and days of the week, as English writes them.

in_english("一百二十三")      # "123"
in_english("三分之一")        # \frac{1}{3}
in_english("12.5万元")        # "125000 yuan"
in_english("十二个苹果")      # "12", and a word that stands for the apples
in_english("2024年3月5日")    # "2024-03-05"
in_english("三角形")          # "三角形": a triangle is no number
"""

from __future__ import annotations

import re
from fractions import Fraction

from training.grading.reading.dates import MONTHS

_DIGITS = dict(zip("零一二三四五六七八九", range(10), strict=True)) | {
    "〇": 0, "两": 2, "兩": 2, "壹": 1, "贰": 2, "貳": 2, "叁": 3, "參": 3, "肆": 4, "伍": 5,
    "陆": 6, "陸": 6, "柒": 7, "捌": 8, "玖": 9,
}  # fmt: skip
_SMALL = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_NUMERALS = "".join([*_DIGITS, *_SMALL, *_LARGE])
_WESTERN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?[万萬亿億]?"
_NUMBER = rf"(?:[{_NUMERALS}]+(?:点[{''.join(_DIGITS)}]+)?|{_WESTERN})"
_QUANTITY = re.compile(
    rf"(?P<sign>[负負+-]?)\s*(?:(?P<percent>一?百分之)|(?:(?P<whole>{_NUMBER})又)?"
    rf"(?:(?P<below>{_NUMBER})分之)?)(?P<above>{_NUMBER})\s*(?P<rest>[一-鿿/％%]*)"
)
# What is measured, as reading/units.py calls it.
_UNITS = {
    "元": "yuan", "块": "yuan", "块钱": "yuan", "元钱": "yuan", "人民币": "yuan", "美元": "dollars",
    "美分": "cents", "欧元": "euros", "英镑": "GBP", "日元": "yen", "港元": "HKD",
    "毫米": "mm", "厘米": "cm", "分米": "dm", "米": "m", "千米": "km", "公里": "km",
    "平方厘米": "cm^2", "平方分米": "dm^2", "平方米": "m^2", "平方千米": "km^2",
    "立方厘米": "cm^3", "立方分米": "dm^3", "立方米": "m^3", "毫升": "mL", "升": "L",
    "毫克": "mg", "克": "g", "千克": "kg", "公斤": "kg", "吨": "t", "秒": "s", "秒钟": "s",
    "分钟": "min", "小时": "h", "天": "days", "周": "weeks", "星期": "weeks", "月": "months",
    "个月": "months", "年": "years", "度": r"^\circ", "摄氏度": r"^\circ C",
    "千米/时": "km / h", "千米/小时": "km / h", "公里/小时": "km / h", "米/秒": "m / s",
    "％": "%", "%": "%", "": "",
}  # fmt: skip
# Words between a number and what is counted.
_COUNTERS = "个個只隻人名位本张張条條件次块颗顆支枝辆輛朵棵头頭匹间間台瓶杯盒袋箱包页頁岁歲种種组組"
_COUNTED = re.compile(rf"[{_COUNTERS}](?P<what>[一-鿿]{{0,6}})")
_DATE = re.compile(
    rf"(?:(?P<year>\d{{4}}|[{''.join(_DIGITS)}]{{4}})年)?"
    rf"(?P<month>\d{{1,2}}|[{_NUMERALS}]{{1,3}})月(?P<day>\d{{1,2}}|[{_NUMERALS}]{{1,3}})[日号號]"
)
_WEEKDAY = re.compile(r"(?:星期|周|週|礼拜)([一二三四五六日天])")
_WEEKDAYS = dict(
    zip("一二三四五六日", ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday",
                            "sunday"], strict=True)
)  # fmt: skip


def in_english(text: str) -> str:
    """`text` as English writes it, if all of it is a number, quantity, date or day in Chinese."""
    if text.isascii():
        return text
    text = text.strip()
    weekday = _WEEKDAY.fullmatch(text)
    if weekday is not None:
        return _WEEKDAYS["日" if weekday[1] == "天" else weekday[1]]
    return _date(text) or _quantity(text) or text


def _date(text: str) -> str | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day = (_value(match[part] or "") for part in ("year", "month", "day"))
    if month is None or day is None or not 1 <= month <= 12:
        return None
    if year is None:
        return f"{MONTHS[int(month) - 1].capitalize()} {int(day)}"
    return f"{int(year):04}-{int(month):02}-{int(day):02}"


def _quantity(text: str) -> str | None:
    if text in ("半", "一半"):
        return r"\frac{1}{2}"
    match = _QUANTITY.fullmatch(text)
    if match is None or not re.search(r"[^\x00-\x7f]", text):
        return None
    of_parts = bool(match["percent"] or match["below"])
    whole, below, above = (
        _part(match[part] or "", alone=of_parts) for part in ("whole", "below", "above")
    )
    if above is None or (match["below"] and not below) or (match["whole"] and not below):
        return None
    if match["whole"] and whole is None:
        return None
    unit = _unit(match["rest"])
    if unit is None or (match["percent"] and unit):
        return None
    sign = "-" if match["sign"] in ("负", "負", "-") else ""
    if match["percent"]:
        return f"{sign}{_written(above)}%"
    value = (whole or 0) + (above / below if below else above)
    return f"{sign}{_written(value)} {unit}".strip()


def _part(text: str, alone: bool) -> Fraction | None:
    """The number that a part is; `alone`: 百 without a digit is 100, as in 百分之百."""
    size = (_SMALL | _LARGE).get(text) if alone and text not in ("十", "拾") else None
    return Fraction(size) if size else _value(text)


def _unit(text: str) -> str | None:
    """What is measured or counted; None: `text` is neither."""
    if text in _UNITS:
        return _UNITS[text]
    counted = _COUNTED.fullmatch(text)
    if counted is None:
        return None
    # Units are words of ASCII letters, which differ where what is counted does.
    digits = "".join(f"{ord(one):x}" for one in counted["what"])
    return "".join(chr(ord("g") + int(digit, 16)) for digit in digits)


def _written(value: Fraction) -> str:
    """Digits, with a point where that is exact; else a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{scaled.numerator:0{places + 1}}"
            return f"{digits[:-places]}.{digits[-places:]}"
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _value(text: str) -> Fraction | None:
    """The number that `text` is, in Chinese or in digits; None: it is none."""
    if not text:
        return None
    if text[0].isascii():
        scale = _LARGE.get(text[-1], 1)
        return Fraction(text.rstrip("".join(_LARGE)).replace(",", "")) * scale
    whole, _, decimals = text.partition("点")
    value = _whole(whole)
    if value is None or not decimals:
        return None if value is None else Fraction(value)
    digits = "".join(str(_DIGITS[one]) for one in decimals)
    return value + Fraction(int(digits), 10 ** len(digits))


def _whole(text: str) -> int | None:
    """一百零五 is 105, 二〇二四 is 2024, 一百五 is 150; None: it is no number."""
    if all(one in _DIGITS for one in text):
        return int("".join(str(_DIGITS[one]) for one in text))
    for scale in ("亿億", "万萬"):
        places = [place for place, one in enumerate(text) if one in scale]
        if places:
            above, below = text[: places[-1]], text[places[-1] + 1 :]
            size = _LARGE[text[places[-1]]]
            head = _whole(above) if above else None
            rest = _behind(below, size) if below else 0
            return None if head is None or rest is None or rest >= size else head * size + rest
    return _below_ten_thousand(text)


def _behind(text: str, size: int) -> int | None:
    """What stands behind 万 or 亿: one digit is its next lower place, as in 一万五."""
    if len(text) == 1 and text in _DIGITS:
        return _DIGITS[text] * size // 10
    return _whole(text)


def _below_ten_thousand(text: str) -> int | None:
    total, last, digit, zero = 0, 10**4, None, False
    for one in text:
        if one in _DIGITS:
            if digit is not None and (digit != 0 or _DIGITS[one] == 0):
                return None  # two digits without a place between them
            zero = zero or _DIGITS[one] == 0
            digit = _DIGITS[one]
            continue
        size = _SMALL.get(one)
        if size is None or size >= last or digit == 0:
            return None
        if digit is None and not (size == 10 and (total == 0 or zero)):
            return None  # only ten goes without a digit: 十二
        total += (digit or 1) * size
        last, digit, zero = size, None, False
    if digit is None:
        return total
    return total + (digit if zero or last in (10, 10**4) else digit * last // 10)
