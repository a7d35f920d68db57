r"""Reasoning Gym: tasks as text, drawing, stored entries, and grading what may be hostile."""

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grading import Verifier
from training.grading.reasoning_gym import GymQuestion, arithmetic, readings
from training.gym import task as gym_task
from training.gym.draw import Drawn, draw, draw_here, gym_seed
from training.gym.entry import decode_entry, encode_entry
from training.gym.task import GymTask
from training.problems import Grading, Problem

pytest.importorskip("reasoning_gym")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(deadline=2, workers=1) as verifier:
        yield verifier


def drawn(task: str, count: int = 1) -> list[Problem]:
    return [
        Problem(id=str(one.draw), problem=one.question, answer=one.answer,
                grading=Grading(grader="reasoning_gym", task=task, entry=one.entry))
        for one in draw_here(GymTask.parse(task), 0, count)
    ]  # fmt: skip


# ------------------------------------------------------------------------------ tasks as text


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.integers().map(str), st.booleans().map(str), st.lists(st.integers(0, 9)).map(str)
)


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_task_is_read_as_it_was_written(name: str, options: dict[str, str]) -> None:
    task = GymTask(name, options)
    assert GymTask.parse(str(task)) == task


@given(st.text(max_size=30))
def test_any_text_is_a_task_or_a_clear_error(text: str) -> None:
    try:
        task = GymTask.parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert GymTask.parse(str(task)) == task


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("", "name is missing"),
        ("chain_sum,min_terms", "'min_terms' is not option=value"),
        ("chain_sum,min_terms=", "is not option=value"),
        ("chain_sum,=3", "is not option=value"),
        ("chain_sum,", "'' is not option=value"),
        ("chain_sum,min_terms=1,min_terms=2", "min_terms is given twice"),
        ("countdown,operators=[+", "lacks a ']'"),
        ("chain_sums", "did you mean chain_sum"),
        ("composite", "no generator 'composite'"),
        ("chain_sum,terms=3", "no option 'terms'; there are seed, count, min_terms"),
        ("chain_sum,min_terms=three", "min_terms: .*integer.*'three'"),
        ("chain_sum,allow_negation=perhaps", "allow_negation: .*boolean"),
        ("chain_sum,min_terms=6,max_terms=3", "max_terms must be >= min_terms"),
        ("arc_1d,task_weights=[1,", "lacks a ']'"),
    ],
)
def test_a_task_that_is_refused(task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymTask.parse(task).dataset(seed=0, size=1)


def test_options_have_the_generators_types() -> None:
    config = GymTask.parse("chain_sum,allow_negation=true").dataset(0, 1).config
    assert config.allow_negation is True
    config = GymTask.parse("basic_arithmetic,operators=['+', '-']").dataset(0, 1).config
    assert list(config.operators) == ["+", "-"]


# ------------------------------------------------------------------------------------ drawing


def test_our_seeds_share_no_draws() -> None:
    """The generator's own seeds 11 and 12 would share 399 of 400."""
    seeds = sorted(gym_seed("chain_sum", seed) for seed in range(200))
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 400
    assert gym_seed("chain_sum", 0) != gym_seed("products", 0)
    task = GymTask.parse("chain_sum,min_terms=4,max_terms=6")
    questions = [{one.question for one in draw_here(task, seed, 50)} for seed in (11, 12)]
    assert not questions[0] & questions[1]


def test_questions_do_not_repeat() -> None:
    """A generator with few questions gives those it has."""
    found = draw_here(GymTask.parse("chain_sum,min_terms=1,max_terms=1,max_digits=1"), 0, 100)
    assert len(found) == 10 == len({one.question for one in found})


def test_drawing_in_a_process_of_its_own() -> None:
    """This generator draws from a set of strings: another hash seed, another question."""
    task = GymTask.parse("ransom_note")
    found = [draw(task, 3, 2) for _ in range(2)]
    assert found[0] == found[1]
    assert [type(one) for one in found[0]] == [Drawn, Drawn]
    with pytest.raises(ValueError, match="no generator 'ransom_notes'"):
        draw(GymTask.parse("ransom_notes"), 0, 1)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym_task.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"problems: .*pip install -e '\.\[gym\]'"):
        draw(GymTask.parse("chain_sum"), 0, 1)


# ------------------------------------------------------------------------------------ entries


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.fractions())
ENTRIES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(SCALARS, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(ENTRIES)
def test_an_entry_is_stored_with_its_types(value: Any) -> None:
    again = decode_entry(encode_entry({"metadata": value}))["metadata"]
    assert again == value and type(again) is type(value)


def test_what_an_entry_may_hold() -> None:
    import numpy as np

    stored = encode_entry({"a": np.str_("x"), "b": np.arange(2), "__type__": Fraction(1, 2)})
    assert json.loads(stored)  # plain JSON
    assert decode_entry(stored) == {"a": "x", "b": [0, 1], "__type__": Fraction(1, 2)}
    with pytest.raises(ValueError, match="a object cannot be stored"):
        encode_entry({"a": object()})


# ------------------------------------------------------------------------------------ grading


@pytest.mark.parametrize(
    ("answer", "reading"),
    [
        (r"\text{yes}", "yes"),
        (r"\frac{1}{2}", "1/2"),
        (r"1{,}234", "1,234"),
        (r"a\_b", "a_b"),
        (r"\frac{x+1}{2}", "(x+1)/2"),
        (r"-\frac{1}{x + 1}", "-1/(x + 1)"),
        (r"\frac{1}{2}x + \frac{3}{4}", "(1/2)x + 3/4"),
        (r"2 \times 3", "2 × 3"),
        (r"2 \times 3", "2 * 3"),
        ("Q _\n_ Q", "Q _\n_ Q"),
    ],
)
def test_readings(answer: str, reading: str) -> None:
    assert readings(answer)[0] == answer
    assert reading in readings(answer)


def test_a_mixed_number_is_no_other_fraction() -> None:
    assert readings(r"1\frac{1}{2}") == (r"1\frac{1}{2}",)


@pytest.mark.parametrize(
    "task",
    [
        "chain_sum",
        "gsm_symbolic",  # fractions in its entries
        "rearc",  # tells tuples from lists
        "mini_sudoku",  # answers of several lines
        "n_queens",
        "prime_factorization",
        "knights_knaves",
    ],
)
def test_references_are_right_and_others_wrong(task: str) -> None:
    [problem] = drawn(task)
    assert problem.grading is not None
    assert GymQuestion(readings(problem.answer), task, problem.grading.entry).decide().correct
    found = GymQuestion(("not an answer",), task, problem.grading.entry).decide()
    assert found.correct is False and found.reason


def test_the_generator_grades(verifier: Verifier) -> None:
    """Stored and read again, and beside a problem of math-verify's."""
    [gym] = drawn("chain_sum")
    gym = Problem.model_validate_json(gym.model_dump_json())
    plain = Problem(id="m", problem="1 / 2", answer="0.5")
    answer = int(gym.answer)
    texts = [
        rf"\boxed{{{answer}.00}}", rf"\boxed{{\text{{{answer}}}}}", f"#### {answer}",
        rf"\boxed{{{answer + 1}}}", rf"\boxed{{{answer} or so}}", f"The answer is {answer}.",
        r"\boxed{}", "", rf"\boxed{{{answer}}} Hence the answer is {answer + 1}.",
    ]  # fmt: skip
    verdicts = verifier.check([*texts, r"\boxed{\frac{2}{4}}"], [gym] * len(texts) + [plain])
    right = [True] * 3 + [False] * 2 + [True] + [False] * 2 + [None, True]
    assert [one.correct for one in verdicts] == right
    assert not any(one.timed_out for one in verdicts)


def test_a_problem_that_cannot_be_read_has_no_verdict(verifier: Verifier) -> None:
    [problem] = drawn("n_queens")
    assert problem.grading is not None
    entries = ["{}", "[]", "not JSON"]
    broken = [
        problem.model_copy(update={"grading": problem.grading.model_copy(update={"entry": entry})})
        for entry in entries
    ]
    gone = problem.grading.model_copy(update={"task": "no_such_generator"})
    broken.append(problem.model_copy(update={"grading": gone}))
    verdicts = verifier.check([rf"\boxed{{{problem.answer}}}"] * 4, broken)
    assert [one.correct for one in verdicts] == [None] * 4
    assert all(one.reason and not one.timed_out for one in verdicts)


def test_a_grader_that_hangs_is_killed(verifier: Verifier) -> None:
    """n_queens evaluates the answer; this one takes longer than anybody has."""
    [problem] = drawn("n_queens")
    texts = [r"\boxed{[9 ** 9 ** 9 ** 9]}", rf"\boxed{{{problem.answer}}}"]
    verdicts = verifier.check(texts, [problem] * 2)
    assert [one.correct for one in verdicts] == [None, True]
    assert [one.timed_out for one in verdicts] == [True, False]


@pytest.mark.parametrize("task", ["n_queens", "simple_integration", "polynomial_equations"])
def test_an_answer_cannot_act(verifier: Verifier, task: str, tmp_path: Path) -> None:
    """Their graders evaluate what they are given."""
    [problem] = drawn(task)
    file = tmp_path / "written"
    answers = [
        f"__import__('pathlib').Path('{file}').touch()",
        f"open('{file}', 'w').write('x')",
        f"__import__('os').system('touch {file}')",
        f"__import__('subprocess').run(['touch', '{file}'])",
        "entry.update(answer='x')",
    ]
    verdicts = verifier.check([f"#### {one}" for one in answers], [problem] * len(answers))
    assert not any(one.correct for one in verdicts)
    assert not file.exists()


def test_arithmetic() -> None:
    assert arithmetic(" [[1, -2], (3 * 4,)]") == [[1, -2], (12,)]
    for source in ("open('x')", "a", "[x for x in (1,)]", "(1).real", "lambda: 1", "entry['a']"):
        with pytest.raises(ValueError, match="in an answer"):
            arithmetic(source)


def test_an_unknown_grader(verifier: Verifier) -> None:
    grading = Grading(grader="oracle", task="t", entry="{}")
    problem = Problem(id="a", problem="p", answer="1", grading=grading)
    with pytest.raises(ValueError, match="problems: there is no grader 'oracle'"):
        verifier.check([r"\boxed{1}"], [problem])
