r"""The final answer inside a text: boxes, numbers, and what is decided without math-verify."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading.final_answer import after_hashes, decide, last_boxed, latex, number

PLAIN = st.text(alphabet=st.characters(exclude_characters="{}\\#", exclude_categories=["Cs"]))
BALANCED = st.recursive(
    PLAIN, lambda inner: st.lists(inner).map(lambda xs: "{" + "".join(xs) + "}")
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x : x > 0 \right.}", r"\left\{ x : x > 0 \right."),
        (r"\boxed {3}", "3"),
        (r"\fbox{4}", "4"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{a \boxed{6}}", "6"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{8} but \boxed{9", "8"),
        (r"stray } and { then \boxed{10}", "10"),
        (r"\boxed{}", ""),
        (r"\boxed{unclosed", None),
        ("boxed{1}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@given(PLAIN, BALANCED, PLAIN)
def test_last_boxed_finds_any_balanced_content(before: str, content: str, after: str) -> None:
    assert last_boxed(f"{before}\\boxed{{{content}}}{after}") == content


@given(st.text(alphabet="{}\\boxed fr$1", max_size=200))
def test_last_boxed_is_balanced_or_none(text: str) -> None:
    found = last_boxed(text)
    assert found is None or found in text


def test_after_hashes() -> None:
    assert after_hashes("2*9 = 18\n#### 18\n") == "18"
    assert after_hashes("#### 1\n#### 2") == "2"
    assert after_hashes("####") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", Fraction(18)),
        ("-3", Fraction(-3)),
        ("+3", Fraction(3)),
        ("1,234.50", Fraction(12345, 10)),
        (".5", Fraction(1, 2)),
        ("007", Fraction(7)),
        ("2e3", Fraction(2000)),
        ("4.5E-1", Fraction(9, 20)),
        (r"4.5 \times 10^{3}", Fraction(4500)),
        (r"2\cdot10^2", Fraction(200)),
        ("1,23", None),
        ("1, 234", None),
        ("1 2", None),
        ("10%", None),
        ("1/2", None),
        ("-", None),
        (".", None),
        ("", None),
        ("1e99999", None),
        ("9" * 100, None),
    ],
)
def test_number(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("candidate", "reference", "decision"),
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("$18$", "18", True),
        (r"\$18", "18", True),
        ("1,000", "1000", True),
        (r"1{,}000", "1000", True),
        ("073", "73", True),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\text{Tuesday}", "Tuesday", True),
        (r"\text{(C)}", "C", True),
        (r"30^\circ", "30", True),
        (r"5\%", "5%", True),
        ("17", "18", False),
        ("0.5", "0.6", False),
        ("", "18", False),
        ("  ", "18", False),
        ("{" * 10_000, "18", False),
        ("1/2", "0.5", None),
        ("0.3333333", "0.33333333", None),
        ("1 2", "12", None),
        (r"10\%", "10", None),
        ("1234", "1, 234", None),
    ],
)
def test_decide(candidate: str, reference: str, decision: bool | None) -> None:
    assert decide(candidate, reference) is decision


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_whole_numbers_are_always_decided(a: int, b: int) -> None:
    assert decide(f"{a:,}", str(b)) is (a == b)


@given(st.text(max_size=80), st.text(max_size=80))
def test_decide_never_fails(candidate: str, reference: str) -> None:
    assert decide(candidate, reference) in (True, False, None)
    assert latex(candidate).startswith("\\boxed{")
