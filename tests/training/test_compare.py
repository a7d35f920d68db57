r"""Comparing answers: exactness by property, what cannot be told, and nonsense."""

import os
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading import Verifier
from training.grading.compare import HERE, WORKER, NeedsWorkerError, compare
from training.grading.compare.residues import equal
from training.grading.reading.arithmetic import read_number
from training.grading.reading.plain_latex import plain
from training.grading.reading.units import read_quantity
from training.grading.verdict import Decision
from training.problems import Grading, Problem


def decide(candidate: str, reference: str) -> Decision:
    try:
        return compare(candidate, reference, HERE)
    except NeedsWorkerError:
        return compare(candidate, reference, WORKER)


# ---------------------------------------------------------------------------------- exactness


WHOLE = st.integers(-(10**40), 10**40)
FRACTIONS = st.fractions(max_denominator=10**12)


def decimal(value: Fraction, digits: int) -> str:
    scaled = round(value * 10**digits)
    sign, whole = "-" if scaled < 0 else "", f"{abs(scaled):0{digits + 1}d}"
    return f"{sign}{whole[:-digits]}.{whole[-digits:]}" if digits else sign + whole


@given(WHOLE, WHOLE)
def test_whole_numbers(a: int, b: int) -> None:
    for form in (f"{a:,}", f"{a}.0", f"+{a}" if a >= 0 else str(a), rf"\frac{{{2 * a}}}{{2}}"):
        assert compare(form, str(b), HERE).correct is (a == b)
        assert compare(form, str(a), HERE).correct is True


@given(FRACTIONS, FRACTIONS)
def test_fractions(a: Fraction, b: Fraction) -> None:
    latex = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert compare(latex, f"{a.numerator}/{a.denominator}", HERE).correct is True
    assert compare(latex, f"{b.numerator}/{b.denominator}", HERE).correct is (a == b)


@given(st.integers(-(10**30), 10**30), st.integers(0, 30), st.integers(-40, 40))
def test_decimals_and_powers_of_ten(digits: int, places: int, exponent: int) -> None:
    value = Fraction(digits, 10**places)
    text = decimal(value, places)
    number = read_number(f"{text}e{exponent}")
    assert number is not None
    assert number.value(10_000) == value * Fraction(10) ** exponent
    assert compare(rf"{text} \times 10^{{{exponent}}}", f"{text}e{exponent}", HERE).correct is True
    nudged = Fraction(digits + 1, 10**places)
    assert compare(text, decimal(nudged, places), HERE).correct is False


@given(st.integers(1, 10**6), st.integers(2, 99), st.integers(1, 98))
def test_mixed_numbers(whole: int, below: int, above: int) -> None:
    if above < below:
        value = whole + Fraction(above, below)
        for text in (rf"{whole}\frac{{{above}}}{{{below}}}", f"{whole} {above}/{below}"):
            assert compare(text, f"{value.numerator}/{value.denominator}", HERE).correct is True


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("10^{10^{10}}", "10^{10^{10}}", True),
        ("10^{10^{10}}", "10^{10^{10}}+1", False),
        ("10^{10^{10}}", r"100^{\frac{10^{10}}{2}}", True),
        ("9^{9^{9^{9}}}", "9^{9^{9^{9}}}", True),
        ("9^{9^{9^{9}}}", "9^{9^{9^{8}}}", False),
        ("4^{2^{99}}", "2^{2^{100}}", True),
        (r"\frac{10^{10^{10}}}{2}", r"5 \cdot 10^{10^{10}-1}", True),
        ("(10^{5})!", r"(10^{5}-1)! \cdot 10^{5}", True),
        ("(10^{30})!", "(10^{30}+1)!", None),
    ],
)
def test_numbers_too_large_to_compute(a: str, b: str, same: bool | None) -> None:
    numbers = [read_number(plain(text)) for text in (a, b)]
    assert all(number is not None for number in numbers)
    found = equal(numbers[0].node, numbers[1].node)  # type: ignore[union-attr]
    assert found is same


# ------------------------------------------------------------------------------- cannot tell


@pytest.mark.parametrize(
    ("candidate", "reference", "reason"),
    [
        ("0.333333", r"\frac13", "rounding"),
        ("3.1416", r"\pi", "rounding"),
        (r"\frac{100}{3}", "33.3", "rounding"),
        ("203", "203_5", "only one side states the base"),
        ("53", "203_5", "different bases"),
        ("5m", "5", "a unit or a variable"),
        ("1, 2, 3, 4, 5", r"1, 2, \ldots, 5", "ellipsis"),
        ("3,14", "3.14", "decimal comma"),
        ("e", "E", "a constant"),
        ("B) 13", "B) 12", "with another text"),
        ("03/04/2021", "April 3, 2021", "exchanged"),
        ("March 5", "March 5, 2021", "names the year"),
        ("18 cats", "18 dogs", "different things"),
        ("2x + 3 = 7", "7", "an equation"),
        (r"\{x : x > 3\}", r"(3, \infty)", "described"),
        ("it cannot be determined", "the data do not suffice", "may mean the same"),
        ("1", r"\frac{1}{2", ""),
    ],
)
def test_cannot_tell(candidate: str, reference: str, reason: str) -> None:
    decision = decide(candidate, reference)
    assert decision.correct is None, decision
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("candidate", "reference", "correct"),
    [
        # Nonsense is not left out of the pass rate.
        ("x + / 3", "7", False),
        ("7 + ((", "7", False),
        ("7 @ 8", "7", None),
        (r"\wp + / 3", "B", False),
        ("x + / 3", "x + 3", None),
        # Regions and bounds.
        ("x > 3 and x < 5", "(3, 5)", True),
        ("x > 3 and x < 5", r"\mathbb{R}", False),
        ("x > 3 or x < 5", r"\mathbb{R}", True),
        ("x < 1, x > 3", r"(-\infty, 1) \cup (3, \infty)", None),
        (r"(-\infty, 0) \cup \{0\}", r"(-\infty, 0]", True),
        (r"\ge 18", "18", False),
        ("at least 18", "18", False),
        (r"\approx 18", "18", True),
        (r"18^{\text{th}}", "18", True),
        ("3:30", "3:30 AM", True),
    ],
)
def test_decisions(candidate: str, reference: str, correct: bool | None) -> None:
    assert decide(candidate, reference).correct is correct


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("18 dollars", 18, (("money", 1),)),
        ("USD 18", 18, (("money", 1),)),
        ("5 cm^2", 5, (("length", 2),)),
        ("60 km/h", 60, (("length", 1), ("time", -1))),
        ("3 million", 3_000_000, ()),
        ("2 hours 30 minutes", 9000, (("time", 1),)),
        ("12 apples", 12, (("apple", 1),)),
    ],
)
def test_quantities(text: str, value: int, unit: tuple[tuple[str, int], ...]) -> None:
    found = read_quantity(text)
    assert found is not None
    assert (found.value(1000), tuple(sorted(found.unit))) == (value, unit)


@pytest.mark.parametrize("text", ["5 more than 10", "5 x", "x cm", "5 or 6", "18 - 20 $", "five"])
def test_what_is_no_quantity(text: str) -> None:
    assert read_quantity(text) is None


def test_a_second_answer_makes_a_right_box_doubtful() -> None:
    with Verifier(workers=1) as verifier:
        texts = [
            r"\boxed{18}. The answer is 19.", r"\boxed{18}. The answer is $18.",
            r"\boxed{17}. The answer is 18.", "The answer is 18. Wait, that is wrong.",
        ]  # fmt: skip
        found = verifier.check(texts, ["18"] * 4)
    assert [one.correct for one in found] == [None, True, False, None]


@pytest.mark.parametrize("grader", ["math", "text", "choice"])
def test_an_answer_that_its_text_contradicts_is_right_by_no_grader(grader: str) -> None:
    grading = None if grader == "math" else Grading(grader=grader, task="", entry="")
    problem = Problem(id="1", problem="?", answer="A", grading=grading)
    texts = [r"\boxed{A}", r"\boxed{A} Scratch that.", r"\boxed{A} So the answer is B."]
    with Verifier(workers=1) as verifier:
        found = verifier.check([*texts, "#### A\nNo wait, the answer is B."], [problem] * 4)
    assert [one.correct for one in found] == [True, None, None, None]


def test_what_a_worker_finds_equal_may_be_taken_back_too() -> None:
    """The comparison takes computer algebra, so that another process makes it."""
    text = r"The answer is $\frac{\sqrt{8}}{2}$."
    with Verifier(workers=1) as verifier:
        texts = [text, f"{text} No wait, that is wrong.", rf"\boxed{{\sqrt{{2}}}} {text}"]
        found = verifier.check(texts, [r"\sqrt{2}"] * 3)
    assert [one.correct for one in found] == [True, None, True]


@pytest.mark.parametrize(
    ("candidate", "reference", "correct"),
    [
        ("cats", "cat", True),
        ("princess", "prince", False),
        ("needless", "needles", False),
        ("glasses", "glass", False),
    ],
)
def test_only_a_plural_is_the_same_word(candidate: str, reference: str, correct: bool) -> None:
    assert decide(candidate, reference).correct is correct
    assert decide(reference, candidate).correct is correct


@pytest.mark.parametrize(
    ("candidate", "reference", "correct"),
    [
        ("D) Both A and B", "D) Both A and B", True),
        ("D. Both A and B", "D", True),
        ("C. A and B only", "C", True),
        ("E) A, B and C", "E", True),
        ("D) Both (A) and (B)", "D", True),
        ("D. Both A and B are correct", "D", True),
        ("D) Neither A nor B", "D", True),
        ("C. I and II only", "C", True),
        ("C. Hepatitis A and B", "C. Hepatitis A and B", True),
        # The option's own text, or a second choice?
        ("C. Hepatitis A and B", "C", None),
        ("A. B and C", "A", None),
        ("B: some text or C", "B", None),
        ("D. Both A and B", "C", False),
        ("(A) 12 (B) 13", "A", False),
        ("A) 12 or B) 13", "A", False),
        ("A, B and C", "A", False),
        ("A or B", "B", False),
        ("Neither A nor B", "A", False),
    ],
)
def test_options_whose_text_names_options(
    candidate: str, reference: str, correct: bool | None
) -> None:
    assert decide(candidate, reference).correct is correct
    grading = Grading(grader="choice", task="", entry="")
    problem = Problem(id="1", problem="?", answer=reference, grading=grading)
    with Verifier(workers=1) as verifier:
        [verdict] = verifier.check([rf"\boxed{{{candidate}}}"], [problem])
    assert verdict.correct is correct


@pytest.mark.parametrize("candidate", ["Both A and B", "D", "(D) Both A and B"])
def test_a_reference_that_is_an_option_with_its_text(candidate: str) -> None:
    assert decide(candidate, "D) Both A and B").correct is True
    assert decide(candidate, "D) Both A and C").correct is not True or candidate == "D"


def test_the_text_of_an_option_may_be_a_denial() -> None:
    assert decide("Neither A nor B", "D) Neither A nor B").correct is True
    assert decide("Neither A nor B", "D) Both A and B").correct is False


@pytest.mark.parametrize(
    ("candidate", "reference", "correct"),
    [
        *(("7 dozen eggs", "84", True), ("7 dozens of eggs", "84 eggs", True)),
        *(("7 dozen eggs", "7", None), ("7 dozens of eggs", "7", None), ("two dozen", "2", None)),
        *(("7", "7 dozen", None), ("7 dozen eggs", "7 dozen", True), ("7 dozen", "8", False)),
        *(("16 quarters", "4", True), ("16 quarters", "16", None), ("16 quarters", "5", False)),
        *(("3 halves", "1.5", True), ("3 halves", "3", None), ("12 fifths", "12", None)),
        *(("three quarters", "3", False), ("3 million", "3", False)),
    ],
)
def test_a_number_of_parts_may_be_a_count(
    candidate: str, reference: str, correct: bool | None
) -> None:
    assert decide(candidate, reference).correct is correct


@pytest.mark.parametrize("grader", ["math", "text"])
@pytest.mark.parametrize(
    ("text", "reference", "correct"),
    [
        ("So the answer is\n\n$$\n18\n$$", "18", True),
        ("Answer:\n\n- 18", "18", True),
        ("Answer: -18", "18", False),
        ("Answer:\n- 3\n- 5", "3", False),
        ("Answer: never", "never", True),
        ("Answer: Neither A nor B", "Neither A nor B", True),
        ("The answer is not Paris.", "Paris", False),
        ("The answer is not x.", "x", False),
        ("The final answer is no solution.", "no", False),
        ("#### left left up up", "left left up up", True),
        ("#### 3:30 PM", "3:30 PM", True),
    ],
)
def test_what_is_stated_is_graded(grader: str, text: str, reference: str, correct: bool) -> None:
    grading = Grading(grader=grader, task="", entry="")
    problem = Problem(id="1", problem="?", answer=reference, grading=grading)
    with Verifier(workers=1) as verifier:
        [verdict] = verifier.check([text], [problem])
    assert verdict.correct is correct


def test_references_that_cannot_be_graded() -> None:
    references = {
        "18": None,
        "18 dollars": None,
        r"\frac{\sqrt{3}}{2}": None,
        "x = 3, y = 4": None,
        "(1, 2]": None,
        "Tuesday": None,
        r"\frac{1}{2": "its braces are not balanced",
        "1, 2, \\ldots, n": "an ellipsis",
        r"\frac{1}{0}": "it has no value",
        "+ = +": "it cannot be parsed",
        "the one that is shown on the left and also in the table below it, as said": "prose",
    }
    problems = [
        Problem(id=str(place), problem="p", answer=one) for place, one in enumerate(references)
    ]
    with Verifier(deadline=30, workers=1) as verifier:
        faults = verifier.check_references(problems)
    for fault, (reference, wanted) in zip(faults, references.items(), strict=True):
        assert (fault is None) is (wanted is None), (reference, fault)
        assert wanted is None or wanted in str(fault)


@pytest.mark.parametrize(
    ("grader", "text", "answer", "correct"),
    [
        ("choice", "B", "B", True),
        ("choice", "(b)", "B", True),
        (
            "choice",
            "I think it is B, or maybe C, as the text says nothing of either one",
            "B",
            False,
        ),
        ("choice", "The answer is B: Paris", "B", True),
        ("choice", "A or B", "A", False),
        ("text", "The answer is New York.", "new  york", True),
        ("text", "The answer is York.", "New York", False),
        ("text", "New York", "New York", False),
    ],
)
def test_graders_by_name(grader: str, text: str, answer: str, correct: bool) -> None:
    grading = Grading(grader=grader, task="", entry="")
    problem = Problem(id="a", problem="p", answer=answer, grading=grading)
    [verdict] = Verifier().check([text], [problem])
    assert verdict.correct is correct


# ---------------------------------------------------------------------------------- nonsense


PIECES = [
    r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "]", r"\{", r"\}", "1", "23", "0", "x", "y", "n",
    "+", "-", "*", "/", "^", "_", "!", "=", "<", r"\le", ",", ";", ":", ".", " ", r"\pi", r"\infty",
    r"\pm", r"\ldots", "%", "$", r"\text", "cm", "dollars", "or", "and", "A", "B", r"\cup", r"\in",
    r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", "½", "²", "√", "−", "１", "é", "中", "\x00",
    "e", "i", r"\boxed{", "answer is", "\n", "'", '"', r"\left", r"\right", "|", "...", "10^{10}",
    "twenty", "-one", " and ", "a half", "third", "tenths", " hundred", "k", "M", "XIV",
    "Quadrant ", "1.234", ",56", "‰", "º", "30'", "half past ", "h30", "\u202e", "\ud800",
    "C$", r"\qty", "e999999999", "to", " only", "o'clock", "∶", "ℝ", r"\ne",
    r"\sum_{n=1}^", r"\int",
]  # fmt: skip
REFERENCES = ["7", r"\frac{1}{2}", "(1,2]", "x^2+1", "B", "Tuesday", r"\{1,2\}", "5 cm", "3:30"]


# REASONMAXXER_FUZZ_ANSWERS=1000 tries so many in workers, of the seed REASONMAXXER_FUZZ_FROM.
ANSWERS = int(os.environ.get("REASONMAXXER_FUZZ_ANSWERS", "400"))
SEED = int(os.environ.get("REASONMAXXER_FUZZ_FROM", "1"))


def nonsense(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(1, 14))) for _ in range(count)]


@pytest.mark.timeout(120)  # one that hangs ends the test
def test_nonsense_never_fails_here() -> None:
    """5,000 random answers, in this process."""
    answers = nonsense(0, 5000)
    left = 0
    for place, answer in enumerate(answers):
        try:
            decision = compare(answer, REFERENCES[place % len(REFERENCES)], HERE)
            assert decision.reason
        except NeedsWorkerError:
            left += 1
    assert 0 < left < len(answers)


def test_nonsense_in_workers_harms_no_other_answer() -> None:
    """Of random answers, some hang or die in their worker; good ones beside them are graded."""
    answers = nonsense(SEED, ANSWERS)
    texts = [text for one in answers for text in (rf"\boxed{{{one}}}", r"\boxed{x+1}")]
    references = [
        one for place in range(len(answers)) for one in (REFERENCES[place % len(REFERENCES)], "1+x")
    ]
    with Verifier(deadline=5) as verifier:
        verdicts = verifier.check(texts, references)
        assert [one.correct for one in verdicts[1::2]] == [True] * len(answers)
        assert all(one.reason for one in verdicts)
        [after] = verifier.check([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])
    assert after.correct
