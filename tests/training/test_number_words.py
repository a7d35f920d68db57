"""Numbers in words, with a letter for their size, and in Roman numerals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading.reading.number_words import count_of_parts, in_digits, ordinal
from training.grading.reading.short_numbers import long_form, roman

ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))


def in_words(n: int, joined: str) -> str:
    """`n` as English writes it; `joined`: what stands behind a hundred."""
    for size, name in SCALES:
        if n >= size:
            rest = f" {in_words(n % size, joined)}" if n % size else ""
            return f"{in_words(n // size, joined)} {name}{rest}"
    if n >= 100:
        rest = f" {joined}{in_words(n % 100, joined)}" if n % 100 else ""
        return f"{ONES[n // 100]} hundred{rest}"
    if n >= 20:
        return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")
    return ONES[n]


@given(st.integers(0, 10**12 - 1) | st.integers(0, 2000), st.sampled_from(["", "and "]))
def test_every_number_in_words_is_that_number(n: int, joined: str) -> None:
    assert in_digits(in_words(n, joined)) == str(n)
    assert in_digits(f"{in_words(n, joined)} apples") == f"{n} apples"
    if n:
        assert in_digits(f"minus {in_words(n, joined)}") == f"-{n}"


@given(st.lists(st.sampled_from([*ONES, *TENS, "hundred", "thousand", "and"]), max_size=6))
def test_words_that_are_no_number_stay_words(words: list[str]) -> None:
    text = " ".join(words)
    read = in_digits(text)
    if read != text:
        n = int(read)  # all of it, never a beginning
        ways = {in_words(n, ""), f"{in_words(n // 100, '')} hundred {in_words(n % 100, '')}"}
        ways |= {in_words(n // 1000 * 1000, "") + f" {way}" for way in hundreds(n % 1000)}
        spoken = {way.removesuffix(" zero").replace("-", " ") for way in ways}
        assert text.replace(" and ", " ") in spoken


def hundreds(n: int) -> list[str]:
    """Nineteen hundred, where a thousand stands before it."""
    return [f"{in_words(n // 100, '')} hundred {in_words(n % 100, '')}"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("two and a half", r"\frac{5}{2}"),
        ("three and three quarters hours", r"\frac{15}{4} hours"),
        ("seven tenths", r"\frac{7}{10}"),
        ("five-eighths", r"\frac{5}{8}"),
        ("one hundredth", r"\frac{1}{100}"),
        ("a third", r"\frac{1}{3}"),
        ("5 hundredths", r"\frac{5}{100}"),
        ("3 halves", r"\frac{3}{2}"),
        ("three halves", r"\frac{3}{2}"),
        ("two point zero five", r"\frac{41}{20}"),
        ("nineteen hundred", "1900"),
        ("a dozen eggs", "12 eggs"),
        ("twenty, one", "20, one"),
        ("twenty - one", "20 - one"),
        ("one or two", "one or two"),
        ("fifty fifty", "fifty fifty"),
        ("twenty fifths", "twenty fifths"),
        ("someone", "someone"),
        ("a dog", "a dog"),
        ("x", "x"),
        ("", ""),
    ],
)
def test_parts_and_what_is_left_alone(text: str, read: str) -> None:
    assert in_digits(text) == read


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("16 quarters", "16"), ("7 dozen eggs", "7"), ("two dozens", "2"), ("3-halves", "3")),
        *(("16 quarts", None), ("three quarters", None), ("a dozen", None), ("16", None)),
    ],
)
def test_counts_of_parts(text: str, count: str | None) -> None:
    assert count_of_parts(text) == count


@pytest.mark.parametrize(
    ("text", "position"),
    [
        *(("first", 1), ("the 3rd", 3), ("twenty-first", 21), ("101st", 101), ("hundredth", 100)),
        *(("one hundred and twelfth", 112), ("21th", 21), ("fortieth", 40), ("1,000th", 1000)),
        *(("three", None), ("thirds", None), ("one third of", None), ("third base", None)),
        *(("ten first", None), ("", None)),
    ],
)
def test_ordinals(text: str, position: int | None) -> None:
    assert ordinal(text) == position


@pytest.mark.parametrize(
    ("text", "long"),
    [
        *(("18k", "18000"), ("1.5M", "1500000"), ("USD 1.5M", "USD 1500000"), (".5k", "500")),
        *(("1.2345k", "1234.5"), ("-2K", "-2000"), ("2.5k dollars", "2500 dollars"), ("0k", "0")),
        *(("4 K", None), ("18kg", None), ("3k+1", None), ("k", None), ("5m", None), ("kk", None)),
    ],
)
def test_letters_for_sizes(text: str, long: str | None) -> None:
    assert long_form(text) == long


@given(st.integers(1, 3999))
def test_roman_numerals(n: int) -> None:
    rest, written = n, ""
    for value, letters in (
        *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")),
        *((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
    ):
        written += rest // value * letters
        rest %= value
    found = roman(written)
    assert found is not None and found.value == n
    assert found.alone == (len(written) == 1)


@pytest.mark.parametrize("text", ["IIII", "IC", "VX", "mix", "cm", "Mix", "", "CIVIC", "A", "x1"])
def test_what_is_no_roman_numeral(text: str) -> None:
    assert roman(text) is None


def test_labels_make_a_letter_a_numeral() -> None:
    assert roman("Quadrant I") is not None and roman("Quadrant I").label == "quadrant"  # type: ignore[union-attr]
    assert roman("Type C") is None
    assert not roman("CD").sure  # type: ignore[union-attr]
