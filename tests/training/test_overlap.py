"""Problems that training and a test share are named, left out, or refused."""

import logging
from pathlib import Path

import pytest
from support import write_rows as write

from adapters.adapter import TRAINED_ON
from training.evaluate_config import EvaluateConfig
from training.fit_config import FitConfig
from training.problems import (
    DATA_DIR,
    Problem,
    benchmarks_at_hand,
    load_problems,
    overlaps,
    read_trained_on,
    without_overlaps,
    write_trained_on,
)
from training.problems.overlap import Fingerprint
from training.run import split_problems
from training.seen_problems import compared_with_training

DUCKS = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends every day with four."
)


def problems(*texts: str) -> list[Problem]:
    return [Problem(id=f"p{place}", problem=one, answer="1") for place, one in enumerate(texts)]


def found(train: str, test: str) -> list[bool]:
    return [one.same for one in overlaps(problems(train), problems(test))]


def test_same_words() -> None:
    assert found(DUCKS, DUCKS.upper().replace(".", " !")) == [True]
    assert found("What is 1 + 1?", "what is  1 + 1") == [True]
    assert found("What is 1 + 1?", "What is 1 - 1?") == []


def test_words_in_a_row() -> None:
    assert found(f"A story. {DUCKS} How many are left?", f"{DUCKS} How much does she make?") == [
        False
    ]
    other = DUCKS.replace("every", "each").replace("day", "week").replace("and", "or")
    assert found(DUCKS, other) == []


def test_a_template_is_no_copy() -> None:
    template = (
        "Solve the following problem and state the result as one whole number without a unit: "
    )
    train = problems(*(f"{template}{n} + 1" for n in range(20)))
    test = problems(*(f"{template}{n} + 1" for n in range(19, 40)))
    assert [(one.trained.id, one.same) for one in overlaps(train, test)] == [("p19", True)]


def test_what_is_done_about_it(caplog: pytest.LogCaptureFixture) -> None:
    train, test = problems("What is 2 + 2?", DUCKS), problems(DUCKS)
    with caplog.at_level(logging.WARNING):
        assert without_overlaps(train, test, "gsm8k", "name") == train
    assert "1 of 2 problems overlap with gsm8k (1 are the same" in caplog.text
    assert "p1 and p0" in caplog.text
    assert without_overlaps(train, test, "gsm8k", "drop") == train[:1]
    with pytest.raises(ValueError, match=r"problems: 1 of 2 .* --overlap drop"):
        without_overlaps(train, test, "gsm8k", "refuse")
    with pytest.raises(ValueError, match="problems: all of 1 of 1"):
        without_overlaps(train[1:], test, "gsm8k", "drop")
    assert without_overlaps(train[:1], test, "gsm8k", "refuse") == train[:1]


def test_benchmarks_at_hand_are_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit names what its problems share with a benchmark, tests and held-out problems."""
    monkeypatch.delenv(DATA_DIR, raising=False)
    data = tmp_path / "data"
    data.mkdir()
    write(data / "gsm8k.jsonl", {"question": DUCKS, "answer": "#### 18"})
    write(data / "gsm8k_train.jsonl", {"question": "What is 1 + 1?", "answer": "#### 2"})
    assert set(benchmarks_at_hand(data, besides="math500")) == {"gsm8k"}
    assert set(benchmarks_at_hand(data, besides="2*gsm8k+math500")) == set()
    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12)]
    own = write(tmp_path / "p.jsonl", *rows, {"problem": f"Now: {DUCKS}", "answer": "18"})
    tests = write(tmp_path / "t.jsonl", {"problem": "what is 3 + 3", "answer": "6"})
    given = ["--model", "m", "--problems", own, "--output", str(tmp_path / "a")]
    given += ["--data-dir", str(data), "--tests", tests]
    train, heldout = split_problems(FitConfig.load(given))
    assert len(train) + len(heldout) == 13
    assert "overlap with gsm8k (0 are the same" in caplog.text
    assert "overlap with --tests (1 are the same" in caplog.text
    train, heldout = split_problems(FitConfig.load([*given, "--overlap", "drop"]))
    assert len(train) + len(heldout) == 11
    with pytest.raises(ValueError, match="overlap with --tests"):
        split_problems(FitConfig.load([*given, "--overlap", "refuse"]))


def test_repeated_questions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"id": "a", "problem": "1 / 2", "answer": "0.5"},
        {"id": "b", "problem": "1  / 2", "answer": r"\frac12"},
        {"id": "c", "problem": "1 + 1", "answer": "2"},
        {"id": "d", "problem": "1 + 1", "answer": "3"},
        {"id": "e", "problem": "1 + 2", "answer": "3"},
    ]
    path = write(tmp_path / "p.jsonl", *rows)
    assert [one.id for one in load_problems(path)] == ["a", "e"]
    assert (
        "1 problems repeat the question of an earlier one and are left out: b (as a)" in caplog.text
    )
    assert "1 questions have different reference answers and are left out: c ('2') and d ('3')" in (
        caplog.text
    )
    with pytest.raises(ValueError, match="only questions with different answers"):
        load_problems(write(tmp_path / "q.jsonl", *rows[2:4]))


# -------------------------------------------------------------- what an adapter was fitted to


def test_fingerprints_are_the_same_everywhere_and_hold_no_text(tmp_path: Path) -> None:
    [one] = map(Fingerprint.of, problems("What is 1 + 1?"))
    assert (one.whole, one.runs) == (0x1B65EEA921280C36, ())
    write_trained_on(tmp_path / TRAINED_ON, train=problems(DUCKS), heldout=problems("1 + 1"))
    assert b"ducks" not in (tmp_path / TRAINED_ON).read_bytes()
    read = read_trained_on(tmp_path)
    assert read == [*map(Fingerprint.of, problems(DUCKS)), Fingerprint.of(problems("1 + 1")[0])]
    assert read_trained_on(tmp_path / "absent") is None


@pytest.mark.parametrize("content", [b"", b"PAR1" * 20, b"{}"])
def test_a_damaged_file_of_fingerprints_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRAINED_ON).write_bytes(content)
    with pytest.raises(ValueError, match=r"trained-on\.parquet: holds no fingerprints"):
        read_trained_on(tmp_path)


def adapter(folder: Path) -> Path:
    """An adapter's folder, as far as the comparison looks at it: fitted to two problems."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    write_trained_on(
        folder / TRAINED_ON, train=problems("What is 2 + 2?", DUCKS), heldout=problems("9 - 9")
    )
    return folder


def test_an_evaluation_names_what_the_adapter_was_fitted_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(tmp_path / "mine")
    tested = problems("2 * 2", f"Read on. {DUCKS}", "what is 2 + 2", "What is 9 - 9", "9 -  9?")

    def config(*flags: str) -> EvaluateConfig:
        given = ["--model", "m", "--problems", "p.jsonl", "--adapter", str(folder), *flags]
        return EvaluateConfig.load(given)

    asked, seen = compared_with_training(config(), tested)
    assert asked == tested
    assert seen is not None
    assert (seen["overlapping"], seen["same"], seen["left_out"]) == (3, 2, False)
    assert seen["pairs"] == [("p1", "p1"), ("p2", "p0"), ("p4", "p0")]
    assert f"3 of 5 problems overlap with what '{folder}' was fitted to (2 are the" in caplog.text
    asked, seen = compared_with_training(config("--overlap", "drop"), tested)
    assert [one.id for one in asked] == ["p0", "p3"]
    with pytest.raises(ValueError, match=r"--problems: 3 of 5 .* --overlap drop"):
        compared_with_training(config("--overlap", "refuse"), tested)
    with pytest.raises(ValueError, match="was fitted to all of"):
        compared_with_training(config("--overlap", "drop"), tested[1:3])
    # Somebody else's adapter says nothing of its problems; its user may.
    (folder / TRAINED_ON).unlink()
    assert compared_with_training(config(), tested) == (tested, None)
    assert "is not known" in caplog.text
    named = write(tmp_path / "t.jsonl", {"problem": "2 * 2", "answer": "4"})
    _, seen = compared_with_training(config("--trained-on", named), tested)
    assert seen is not None
    assert (seen["compared_with"], seen["pairs"]) == ("t.jsonl", [("p0", "00000")])
