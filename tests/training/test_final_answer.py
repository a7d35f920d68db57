r"""Boxes in a text, and GSM8K's mark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading.final_answer import after_hashes, boxes, last_boxed

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
    assert after_hashes("##### 3") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} so \boxed{2}", ("2", False)),
        (r"\boxed{18} ... \boxed{19", (None, True)),
        (r"\boxed{19", (None, True)),
        (r"\boxed{8 and then \boxed{9}", ("9", False)),
        (r"\boxed{3}, \boxed{-3}", ("3, -3", False)),
        (r"\boxed{3} and $\boxed{-3}$", ("3, -3", False)),
        (r"\boxed{3}. \boxed{4}", ("4", False)),
        (r"\boxed{5}, \boxed{5}", ("5", False)),
        ("none", (None, False)),
    ],
)
def test_the_answer_of_several_boxes(text: str, found: tuple[str | None, bool]) -> None:
    assert (boxes(text).last, boxes(text).cut_off) == found
