"""Numbers, quantities, dates and days in Chinese, as English writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading.reading.chinese import in_english

DIGITS = "零一二三四五六七八九"


def in_chinese(n: int) -> str:
    """`n` as Chinese writes it in full."""
    for size, name in ((10**8, "亿"), (10**4, "万")):
        if n >= size:
            rest = n % size
            gap = "零" if 0 < rest < size // 10 else ""
            return f"{in_chinese(n // size)}{name}{gap}{in_chinese(rest) if rest else ''}"
    for size, name in ((1000, "千"), (100, "百"), (10, "十")):
        if n >= size:
            rest = n % size
            gap = "零" if 0 < rest < size // 10 else ""
            return f"{DIGITS[n // size]}{name}{gap}{in_chinese(rest) if rest else ''}"
    return DIGITS[n]


@given(st.integers(0, 10**12 - 1) | st.integers(0, 20_000))
def test_every_number_is_that_number(n: int) -> None:
    assert in_english(in_chinese(n)) == str(n)
    assert in_english(f"负{in_chinese(n)}") == f"-{n}"
    assert in_english(f"{in_chinese(n)}元") == f"{n} yuan"
    assert in_english(f"{n}元") == f"{n} yuan"


@given(st.text("零一二两十百千万亿点分之又负半个元年月日/%,.15", max_size=12))
def test_any_text_is_read_or_left_as_it_is(text: str) -> None:
    assert isinstance(in_english(text), str)


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("十二", "12"),
        ("一百五", "150"),
        ("一万五", "15000"),
        ("二〇二四", "2024"),
        ("三点一四", "3.14"),
        ("百分之五十", "50%"),
        ("百分之百", "100%"),
        ("千分之五", "0.005"),
        ("三分之一", r"\frac{1}{3}"),
        ("一又二分之一", "1.5"),
        ("12.5万元", "125000 yuan"),
        ("12 平方米", "12 m^2"),
        ("20摄氏度", r"20 ^\circ C"),
        ("12岁", "12"),
        ("2024年3月5日", "2024-03-05"),
        ("二〇二四年十二月三十一日", "2024-12-31"),
        ("三月五日", "March 5"),
        ("星期天", "sunday"),
        ("礼拜三", "wednesday"),
    ],
)
def test_what_is_read(text: str, english: str) -> None:
    assert in_english(text) == english


@pytest.mark.parametrize(
    "text",
    ["三角形", "三年级", "一二百", "一百十五", "百", "万", "十十", "一5", "1,5元", "十三月五日",
     "五分之零又", "零分之五", "12", "x=三", "（三）", ""],
)  # fmt: skip
def test_what_is_left_as_it_is(text: str) -> None:
    assert in_english(text) == text


def test_what_is_counted_is_told_apart() -> None:
    apples, pears = in_english("12个苹果"), in_english("12个梨")
    assert apples.split()[0] == pears.split()[0] == "12"
    assert apples != pears
