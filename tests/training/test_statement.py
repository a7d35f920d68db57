r"""The final answer that a text states. More texts are in data/graded-answers.jsonl."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading.statement import stated_answer, without_thoughts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        ("The answer is 1,000.", "1,000"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is $x = 2.5$, which is positive.", "$x = 2.5$"),
        ("The final answer to the problem is therefore 5.", "5"),
        ("**Final Answer:** \\(\\frac{1}{2}\\)", r"\(\frac{1}{2}\)"),
        ("**Answer**: **5**", "5"),
        ("### Final Answer\n\n**12 apples**", "12 apples"),
        ("#### 18", "18"),
        ("#### Step 1\nAdd.\n#### 18", "18"),
        ("<answer>\n18\n</answer>", "18"),
        ("The answer is 5. The answer is 6.", "6"),
        ("Answer: 5<|im_end|>", "5"),
        ("If we add them, the answer is 5.", "5"),
        ("To find the sum we add, so the answer is 5.", "5"),
        ("We find that the answer is 5.", "5"),
        ("The answer is 5 because 2 + 3 = 5.", "5"),
        ("The answer is 72 clips, altogether.", "72 clips"),
        ("The correct option is (B).", "(B)"),
        ("```python\nanswer = 5\n```\nThe answer is 6.", "6"),
    ],
)
def test_stated(text: str, answer: str) -> None:
    assert stated_answer(text).answer == answer


@pytest.mark.parametrize(
    "announcement",
    [
        "Therefore, the final answer is:\n\n", "Hence the answer is\n", "The answer is thus\n\n",
        "The answer is the following:\n", "### Final Answer\n\n", "**Final Answer:**\n",
        "Final Answer\n\n", "Answer: \n\n", "## Answer\n---\n", "最终答案：\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("block", "answer"),
    [
        ("18", "18"), ("-18", "-18"), ("**B**", "B"), ("`18`", "18"),
        ("$$\n18\n$$", "$18$"), ("$$18$$", "$18$"), ("\\[\n18.\n\\]", "$18$"), ("$\n18\n$", "$18$"),
        ("\\(\n18\n\\)", "$18$"), ("\\begin{equation*}\n18\n\\end{equation*}", "$18$"),
        ("$$18$$ dollars.", "$18$ dollars"),
        ("$$\n5\n$$\nor\n$$\n6\n$$", "$5$ or $6$"), ("\\[5\\]\n\\[6\\]", "$5$, $6$"),
        ("```\n18\n```", "18"), ("```text\n18\n```", "18"), ("```\n1 2\n3 4\n```", "1 2\n3 4"),
        ("```python\nprint(5)\n```\n18", "18"),
        ("- 18", "18"), ("* 18", "18"), ("• 18", "18"), ("> 18", "18"),
        ("1. 18", "18"), ("1. It is so.", "1"), ("2. It is so.", "2"),
        ("- 3\n- 5", "3, 5"), ("1. 3\n2. 5", "3, 5"),
        ("- 18\n- This is what both of them earn.", "18"),
    ],
)  # fmt: skip
def test_an_answer_below_its_announcement(announcement: str, block: str, answer: str) -> None:
    text = announcement + block
    assert stated_answer(text).answer == answer
    assert stated_answer(f"{text}\n\nI hope this helps.").answer == answer
    assert stated_answer(f"{text}\n\nNo wait, that is wrong.").retracted


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: -18", "-18"),
        ("Answer: - 18", "- 18"),
        ("Answer: > 18", "> 18"),
        ("Answer: `18`", "18"),
        ("Answer: ```18```", "18"),
        ("The answer is 5.\nFinal Answer:", "5"),
        ("The answer is 5. So the answer is", None),
        ("The answer is:\n$$\n18", None),
        ("The answer is 5.\nThis checks it:\n```\nanswer: 6\n```", "5"),
        ("<answer>\n```\n18\n```\n</answer>", "18"),
    ],
)
def test_an_answer_beside_its_announcement_or_none(text: str, answer: str | None) -> None:
    assert stated_answer(text).answer == answer


@pytest.mark.parametrize(
    "answer",
    [
        *("no solution", "Monday afternoon", "sodium chloride", "wherever you go", "Sofia"),
        *("asbestos", "justice", "nowhere", "Givens", "a thinner one", "the forthright"),
    ],
)
def test_a_word_is_not_cut_where_it_begins_like_another(answer: str) -> None:
    assert stated_answer(f"The answer is {answer}.").answer == answer
    assert stated_answer(f"**Final Answer:** {answer}").answer == answer
    assert stated_answer(f"The answer is {answer}, because we looked.").answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: Cannot be determined", "Cannot be determined"),
        ("Answer: never", "never"),
        ("Answer: not enough information", "not enough information"),
        ("Answer: Neither A nor B", "Neither A nor B"),
        ("The answer is not known.", "not known"),
        ("The answer is London. The answer is not Paris.", "London"),
        ("Answer: 5\nFinal Answer: Cannot be determined", "Cannot be determined"),
        ("Answer: 5\nThe answer is not 6.", "5"),
        ("Answer: not 5", None),
        ("Answer: neither 3 nor 5", None),
        ("The answer is not (B).", None),
        ("The answer is not x, as we saw.", None),
        (r"The answer cannot be $\pi$, and my answer is not $\pi$.", None),
    ],
)
def test_a_denial_in_words_is_an_answer(text: str, answer: str | None) -> None:
    assert stated_answer(text).answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *[
            (f"#### {one}", one)
            for one in (
                *("3:2", "3:30 PM", "10:45", "07:12:37", "B: Paris", "Alice: 5, Bob: 6"),
                *("No solution", "one hundred and five", "left left up up", "All of the above"),
            )
        ],
        ("#### 18\n#### Explanation: we add", "18"),
        ("#### 18\n\n#### Step 1: do", "18"),
        ("#### 18\n#### Check: 9 * 2 = 18", "18"),
        ("#### 18\n#### Verification\n9 * 2 = 18", "18"),
        ("#### 18\n#### one hundred and five", "one hundred and five"),
        ("#### Add both of them\n3 + 5 = 8\n#### 8", "8"),
        ("The answer is 18.\n#### I hope it is correct", "18"),
        ("#### Add both of them up\n3 + 5 = 8", None),
        ("#### Given: 3 apples\nWe add 5", None),
        ("#### Step 5", None),
    ],
)
def test_headings_behind_hashes(text: str, answer: str | None) -> None:
    assert stated_answer(text).answer == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The answer is not 5.", "says what the answer is not"),
        ("It isn't true that the answer is 5.", "says what the answer is not"),
        (r"it is not \boxed{5}", "the last box says what the answer is not"),
        (r"\boxed{5} or \boxed{6", "the last box is cut off"),
        (r"<think>\boxed{5}", "ends inside its think tags"),
        (r"<think>\boxed{5}</think> hm", "no boxed or final answer"),
        ("If the answer is 5, we are done.", "no boxed or final answer"),
        ("Is the answer 5?", "no boxed or final answer"),
        ("Perhaps the answer is 5.", "no boxed or final answer"),
        ("Bob says that the answer is 5.", "no boxed or final answer"),
        ("It is not true that the answer is 5.", "says what the answer is not"),
        ("5", "no boxed or final answer"),
        ("final_answer = 5", "no boxed or final answer"),
        ("```python\n# the answer is 5\nprint(5)", "no boxed or final answer"),
        ("Therefore, the final answer to 2 + 2 is \\", "no boxed or final answer"),
        ("#### Final Answer", "no boxed or final answer"),
        ("", "no text"),
    ],
)
def test_not_stated(text: str, reason: str) -> None:
    stated = stated_answer(text)
    assert stated.answer is None
    assert reason in stated.reason


def test_another_answer_behind_the_box_is_kept() -> None:
    assert stated_answer(r"\boxed{5} The answer is 6.").other == "6"
    assert stated_answer(r"\boxed{5} The answer is 5.").other == ""
    assert stated_answer(r"\boxed{5} The answer is in the box.").other == ""
    assert stated_answer(r"\boxed{5} The answer is six.").other == "six"
    assert stated_answer(r"\boxed{5} The answer is one that we know.").other == ""

    assert stated_answer(r"\boxed{A} So the answer is (B).").other == "(B)"
    assert stated_answer(r"\boxed{A} So the answer is A.").other == ""


@pytest.mark.parametrize("mark", ["#### 5\n", "<answer>5</answer> "])
def test_another_answer_behind_a_mark_is_kept(mark: str) -> None:
    assert stated_answer(f"{mark}Hence the answer is 6.").answer == "5"
    assert stated_answer(f"{mark}Hence the answer is 6.").other == "6"
    assert stated_answer(f"The answer is 6. {mark}").other == ""
    assert stated_answer(f"{mark}Hence the answer is 5.").other == ""


@pytest.mark.parametrize(
    "answer", ["The answer is 5.", r"\boxed{5}", "#### 5\n", "<answer>5</answer>"]
)
def test_an_answer_that_is_taken_back(answer: str) -> None:
    assert stated_answer(f"{answer} No, that is wrong.").retracted
    assert stated_answer(f"{answer} Scratch that.").retracted
    assert not stated_answer(f"{answer} I am sure.").retracted
    assert not stated_answer(f"That is wrong. {answer}").retracted


def test_checking_an_answer_behind_its_box_takes_nothing_back() -> None:
    assert stated_answer("The answer is 5. Wait, no.").retracted
    assert not stated_answer(r"\boxed{5} Let me double-check: 2 + 3 = 5.").retracted


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("a <think>b</think> c", "a  c"),
        ("b</think> c", " c"),
        ("a <think>b", "a "),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<THINKING>a</THINKING>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("1 < 2 and [3]", "1 < 2 and [3]"),
    ],
)
def test_thoughts(text: str, spoken: str) -> None:
    assert without_thoughts(text) == spoken


MARKS = [
    *("<think>", "</think>", r"\boxed{", "}", "answer is ", "answer:", "####", "**", "$", "$$"),
    *("```", "- ", "5", "not ", "\n"),
]


@given(st.lists(st.sampled_from(MARKS), max_size=30).map("".join))
def test_any_mixture_of_marks(text: str) -> None:
    stated = stated_answer(text)
    assert stated.reason
    if "<think>" not in text and "</think>" not in text and stated.boxed:
        assert stated.answer is not None and "boxed" in text


@pytest.mark.parametrize(
    "piece",
    [
        *("answer is ", "answer: ", "the answer ", "<think>", r"\boxed{", "$", "#### ", "if "),
        *("the answer is\n", "answer:\n$$", "answer:\n- 1\n", "answer:\n```\n", "answer is ---"),
    ],
)
@pytest.mark.timeout(120)  # in quadratic time it would take hours
def test_long_texts_come_to_an_end(piece: str) -> None:
    assert stated_answer(piece * (2**20 // len(piece))).reason
    for space in "\n -":
        assert stated_answer(piece * 20 + space * 3800).reason
