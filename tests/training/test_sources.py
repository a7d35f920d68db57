"""Where problems come from: local copies, generators, mixtures, and which are left out."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Refused
from support import write_rows as write

from training.evaluate_config import EvaluateConfig
from training.grading import Verifier
from training.gym.draw import draw_here
from training.problems import (
    DATA_DIR,
    Grading,
    Problem,
    load_problems,
    source_name,
    sources,
    write_problems,
)
from training.problems.mixture import Part, interleave, parse_mixture


@pytest.fixture(autouse=True)
def _no_workers_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw and grade in this process; nothing of the machine's own data."""
    monkeypatch.setattr(sources, "draw", draw_here)
    monkeypatch.setattr(Verifier, "_ask", lambda _, asked: {one: one.decide() for one in asked})
    monkeypatch.delenv(DATA_DIR, raising=False)


def sums(path: Path, count: int, first: int = 0) -> str:
    numbers = range(first, first + count)
    rows = [{"id": f"s{n}", "problem": f"{n} + 1", "answer": str(n + 1)} for n in numbers]
    return write(path, *rows)


# -------------------------------------------------------------------------------- local copies


def test_local_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "1 + 1", "answer": "so\n#### 2"}
    write(tmp_path / "gsm8k_train.jsonl", row)
    wanted = [Problem(id="00000", problem="1 + 1", answer="2")]
    assert load_problems("gsm8k_train", data_dir=tmp_path) == wanted
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    assert load_problems("gsm8k_train") == wanted
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=f"problems: {DATA_DIR}: .*missing is not a folder"):
        load_problems("gsm8k_train")
    assert load_problems("gsm8k_train", data_dir=tmp_path) == wanted  # the flag wins


def test_the_flag(tmp_path: Path, refused: Refused) -> None:
    argv = ["--model", "m", "--problems", "gsm8k", "--data-dir"]
    assert EvaluateConfig.load([*argv, str(tmp_path)]).data_dir == tmp_path
    said = refused(EvaluateConfig.load, [*argv, str(tmp_path / "missing")])
    assert "--data-dir: is not a folder" in said


# -------------------------------------------------------------------------- reference answers


def test_what_cannot_be_graded_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": f"p{n}", "problem": str(n), "answer": str(n)} for n in range(3)]
    rows[1]["answer"] = r"\frac{1}{2"  # no box can hold it
    path = write(tmp_path / "p.jsonl", *rows)
    assert [one.id for one in load_problems(path)] == ["p0", "p2"]
    assert "1 of 3 problems are left out" in caplog.text
    assert r"p1 ('\\frac{1}{2': its braces are not balanced)" in caplog.text
    assert [one.id for one in load_problems(path, limit=2)] == ["p0", "p2"]
    with pytest.raises(ValueError, match=r"problems: .*only problems .* p1 \("):
        load_problems(write(tmp_path / "q.jsonl", rows[1]))


def test_plain_references_take_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verifier, "_ask", None)
    assert len(load_problems(sums(tmp_path / "p.jsonl", 2000))) == 2000


# ------------------------------------------------------------------------------ Reasoning Gym


def test_a_generator_as_a_source() -> None:
    pytest.importorskip("reasoning_gym")
    source = "reasoning_gym:chain_sum,min_terms=3,max_terms=5,seed=7,count=6"
    problems = load_problems(source)
    assert [one.id for one in problems] == [f"chain_sum-7-{n:05d}" for n in range(6)]
    assert {one.grading and one.grading.task for one in problems} == {
        "chain_sum,min_terms=3,max_terms=5"
    }
    assert load_problems(source.replace("6", "8"), limit=6) == problems
    assert len(load_problems("reasoning_gym:chain_sum", limit=3)) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning_gym", "name is missing"),
        ("reasoning_gym:", "name is missing"),
        ("reasoning_gym:chain_sum,seed=-1", "seed: a whole number from 0"),
        ("reasoning_gym:chain_sum,seed=x", "seed: a whole number"),
        ("reasoning_gym:chain_sum,count=0", "count: a whole number from 1"),
        ("reasoning_gym:chain_sum,size=3", "give count=, not size="),
        ("reasoning_gym:graph_color,count=2", "gives no reference answers"),
        ("", "empty part"),
        ("  ", "empty part"),
        ("+", "empty part"),
        ("gsm8k+", "empty part"),
        ("2*", "empty part"),
        ("0*gsm8k", "positive number"),
        ("-1*gsm8k", "positive number"),
        ("1.2.3*gsm8k", "positive number"),
        ("gsm8k:", "lacks a file"),
        ("gsm9k+gsm8k", "'gsm9k' is neither a file"),
        ("gsm8k_train,count=3", "is neither a file"),
        ("reasoning_gym:chain_sum,a=[1+gsm8k", r"lacks a '\]'"),
        ("x" * 300, "is neither a file"),  # longer than any file's name
        ("x" * 300 + ".jsonl", "no such file"),
        ("gsm\0", "is neither a file"),
    ],
)
def test_bad_sources(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^heldout: .*{message}"):
        load_problems(source, field="heldout")


# ----------------------------------------------------------------------------------- mixtures


def test_a_mixture_may_be_longer_than_a_file_name() -> None:
    parts = [f"reasoning_gym:chain_sum,min_terms=2,max_terms=3,seed={n},count=1" for n in range(9)]
    assert len(load_problems("+".join(parts), limit=9)) == 9


@given(st.text(max_size=20))
def test_any_text_is_a_mixture_or_a_clear_error(text: str) -> None:
    try:
        parts = parse_mixture(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parts and all(part.weight > 0 and part.source for part in parts)


WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(WEIGHTS)
def test_a_mixture_is_read_as_it_was_written(weights: list[int]) -> None:
    parts = [Part(float(weight), f"s{number}") for number, weight in enumerate(weights)]
    text = "+".join(f"{part.weight:g}*{part.source}" for part in parts)
    assert parse_mixture(text) == parts
    assert parse_mixture(text.replace("*", " * ").replace("+", " + ")) == parts


@given(WEIGHTS, st.integers(1, 60))
def test_every_prefix_keeps_the_shares(weights: list[int], limit: int) -> None:
    parts = [
        [Problem(id=f"{part}", problem=f"{part} {n}", answer="1") for n in range(limit)]
        for part in range(len(weights))
    ]
    mixed = interleave(parts, weights, limit)
    assert len(mixed) == limit
    for length in range(1, limit + 1):
        for part, weight in enumerate(weights):
            share = length * weight / sum(weights)
            there = sum(one.id == str(part) for one in mixed[:length])
            assert abs(there - share) < len(weights)


def test_mixtures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = sums(tmp_path / "one.jsonl", 10), sums(tmp_path / "other.jsonl", 4, first=9)
    mixture = f"2*{one}+1*{other}"
    problems = load_problems(mixture, limit=6)
    assert [p.id for p in problems] == [
        "one/s0", "other/s9", "one/s1", "one/s2", "other/s10", "one/s3",
    ]  # fmt: skip
    assert [p.source for p in problems[:2]] == ["one", "other"]
    # "9 + 1" is in both and asked once; the shares hold to the end.
    everything = load_problems(mixture)
    assert len({p.question for p in everything}) == len(everything) == 13
    with caplog.at_level(logging.WARNING):
        load_problems(mixture, limit=30)
    assert "the mixture has 13 problems, not 30: one source ran out" in caplog.text
    twice = load_problems(f"{one}+{other}+{one}", limit=3)
    assert [p.id for p in twice] == ["one/s0", "other/s9", "one#2/s1"]


def test_a_mixture_of_generators() -> None:
    pytest.importorskip("reasoning_gym")
    problems = load_problems("3*reasoning_gym:chain_sum+reasoning_gym:gcd", limit=8)
    assert [one.source for one in problems].count("chain_sum") == 6
    assert problems[0].id == "chain_sum/chain_sum-0-00000"


def test_a_path_with_a_plus(tmp_path: Path) -> None:
    assert len(load_problems(sums(tmp_path / "a+b.jsonl", 2))) == 2


def test_names_have_no_folders(tmp_path: Path) -> None:
    path = sums(tmp_path / "p.jsonl", 1)
    assert source_name(path) == "p.jsonl"
    assert source_name(f"gsm8k:{path}") == "gsm8k:p.jsonl"
    assert source_name(f"2*{path} + openai/gsm8k") == "2*p.jsonl+1*openai/gsm8k"
    assert source_name("reasoning_gym:gcd,seed=1") == "reasoning_gym:gcd,seed=1"


# ------------------------------------------------------------------------ shuffled, held out


def test_shuffled_draws_come_from_the_whole_file(tmp_path: Path) -> None:
    path = sums(tmp_path / "p.jsonl", 50)
    wanted = load_problems(path)
    random.Random(3).shuffle(wanted)
    assert load_problems(path, shuffle=3, limit=9) == wanted[:9]


def test_held_out_questions_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, heldout = sums(tmp_path / "p.jsonl", 9), sums(tmp_path / "h.jsonl", 9, first=6)
    asked = load_problems(heldout)
    problems = load_problems(path, limit=6, without=asked)
    assert [one.id for one in problems] == [f"s{n}" for n in range(6)]
    assert [one.id for one in load_problems(path, without=asked)] == [f"s{n}" for n in range(6)]
    assert f"3 problems of {path} are held out" in caplog.text
    with pytest.raises(ValueError, match=r"problems: all 9 problems of .* are held out"):
        load_problems(path, without=load_problems(path))


# -------------------------------------------------------------------------------- as a record


def test_plain_problems_are_stored_as_ever() -> None:
    problem = Problem(id="a", problem="1 + 1", answer="2", source="sums")
    assert problem.model_dump() == {"id": "a", "problem": "1 + 1", "answer": "2"}
    assert problem.model_dump_json() == '{"id":"a","problem":"1 + 1","answer":"2"}'


def test_problems_are_written_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    path = sums(tmp_path / "plain.jsonl", 3)
    problems = load_problems(f"reasoning_gym:chain_sum+{path}", limit=4)
    write_problems(tmp_path / "p.jsonl", problems)
    assert load_problems(str(tmp_path / "p.jsonl")) == problems


def test_a_stored_grader_that_is_none(tmp_path: Path) -> None:
    row: dict[str, Any] = {"problem": "p", "answer": "1", "grading": {"grader": "reasoning_gym"}}
    with pytest.raises(ValueError, match=r"line 1: grading\.task: Field required"):
        load_problems(write(tmp_path / "p.jsonl", row))
    row["grading"] = Grading(grader="oracle", task="", entry="").model_dump()
    with pytest.raises(ValueError, match="no grader 'oracle'"):
        load_problems(write(tmp_path / "p.jsonl", row))
    row["grading"] = "B+"  # a column of the file's own
    assert len(load_problems(write(tmp_path / "p.jsonl", row))) == 1
