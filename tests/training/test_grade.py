"""Grading answers that were made elsewhere: files in, verdicts out, bad rows named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import Refused, write_rows

from training.grade import COLUMNS, main

ROWS = [
    {"id": 1, "text": r"It is \boxed{1/2}.", "answer": "0.5"},
    {"id": 2, "text": r"It is \boxed{3}.", "answer": 4},
    {"id": 3, "text": "No idea.", "answer": "7", "note": "kept"},
]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_comes_back_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([write_rows(tmp_path / "answers.jsonl", *ROWS)])
    written = read(tmp_path / "answers-verdicts.jsonl")
    assert [row["correct"] for row in written] == [True, False, False]
    assert [row["verdict"] for row in written] == ["right", "wrong", "wrong"]
    assert written[2]["reason"] == "no boxed or final answer was given"
    assert [row["boxed"] for row in written] == [True, True, False]
    assert not any(row["timed_out"] for row in written)
    assert [{key: row.get(key) for key in one} for one, row in zip(ROWS, written, strict=True)] == (
        ROWS
    )
    assert (
        "3 answers: 1 right (0.333 of those graded), 2 wrong, 0 cannot tell, 2 boxed, 0 timed out"
        in capsys.readouterr().out
    )


def test_parquet_in_parquet_out_with_other_columns(tmp_path: Path) -> None:
    table = pa.table({"reply": [r"\boxed{x+1}", r"\boxed{2}"], "truth": ["1+x", "3"]})
    pq.write_table(table, tmp_path / "answers.parquet")
    output = tmp_path / "deep" / "verdicts.parquet"
    main(
        [
            *(str(tmp_path / "answers.parquet"), "--output", str(output)),
            *("--text-field", "reply", "--answer-field", "truth"),
        ]
    )
    written = pq.read_table(output)
    assert written["correct"].to_pylist() == [True, False]
    assert written.column_names == ["reply", "truth", *COLUMNS]


def test_a_problem_of_reasoning_gym_is_graded_by_its_own_grader(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    from training.problems import load_problems

    [problem] = load_problems("reasoning_gym:chain_sum", limit=1)
    values = problem.model_dump()
    rows = [
        values | {"text": rf"\boxed{{{problem.answer}}}"},
        values | {"text": r"\boxed{no number}"},
    ]
    main([write_rows(tmp_path / "gym.jsonl", *rows)])
    assert [row["correct"] for row in read(tmp_path / "gym-verdicts.jsonl")] == [True, False]


def test_a_grader_for_each_row(tmp_path: Path) -> None:
    rows = [
        {"text": "B", "answer": "B", "grader": "choice"},
        {"text": "The answer is Paris.", "answer": "paris", "grader": "text"},
        {"text": "The answer is 0.5.", "answer": "1/2", "grader": None},
        {"text": "The answer is 0.5.", "answer": "1/2", "grader": "text"},
        {"text": None, "answer": "1"},
    ]
    main([write_rows(tmp_path / "answers.jsonl", *rows)])
    written = read(tmp_path / "answers-verdicts.jsonl")
    assert [row["correct"] for row in written] == [True, True, True, False, False]


def test_what_cannot_be_told_is_counted_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"text": r"\boxed{0.333333}", "answer": r"\frac13"},
        {"text": r"\boxed{1}", "answer": r"\frac{1}{2"},
        {"text": r"\boxed{1}", "answer": "1", "note": "a column that other rows lack"},
    ]
    output = tmp_path / "verdicts.parquet"
    main([write_rows(tmp_path / "answers.jsonl", *rows), "--output", str(output)])
    written = pq.read_table(output)
    assert written["correct"].to_pylist() == [None, None, True]
    assert written["verdict"].to_pylist() == ["cannot tell", "cannot tell", "right"]
    assert written["note"].to_pylist() == [None, None, "a column that other rows lack"]
    out = capsys.readouterr().out
    assert "1 right (1.000 of those graded), 0 wrong, 2 cannot tell" in out
    assert "cannot tell, 1: equal up to rounding" in out
    assert "1 references cannot be graded (" in caplog.text
    assert "its braces are not balanced" in caplog.text


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_csv_in_csv_out(tmp_path: Path, suffix: str, mark: str) -> None:
    (tmp_path / "answers.csv").write_text('text,answer\n"The answer is 1,000.",1000\n#### 2,3\n')
    main([str(tmp_path / "answers.csv"), "--output", str(tmp_path / f"verdicts.{suffix}")])
    lines = (tmp_path / f"verdicts.{suffix}").read_text().splitlines()
    assert lines[0] == mark.join(["text", "answer", *COLUMNS])
    assert [line.split(mark)[-5] for line in lines[1:]] == ["right", "wrong"]


def test_texts_that_are_answers_themselves(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "answers.jsonl", {"text": "18 dollars", "answer": 18.0})
    main([path])
    assert [row["correct"] for row in read(tmp_path / "answers-verdicts.jsonl")] == [False]
    main([path, "--whole-text"])
    assert [row["correct"] for row in read(tmp_path / "answers-verdicts.jsonl")] == [True]


def test_no_answers_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([write_rows(tmp_path / "empty.jsonl")])
    assert "0 answers: 0 right, 0 wrong, 0 cannot tell, 0 boxed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "1"}, "line 2: text: must be text; --text-field"),
        ({"text": 5, "answer": "1"}, "line 2: text: must be text"),
        ({"text": "x"}, "line 2: answer: must be a reference answer; --answer-field"),
        ({"text": "x", "answer": " "}, "line 2: answer: must be a reference"),
        ({"text": "x", "answer": ["1"]}, "line 2: answer: must be a reference"),
        ({"text": "x", "answer": "1", "grading": {"grader": "g"}}, "line 2: grading.task"),
        ({"text": "x", "answer": "1", "grading": "math"}, "line 2: grading"),
        ({"text": "x", "answer": "1", "grader": "oracle"}, "line 2: grader: 'oracle' is none of"),
        (
            {"text": "x", "answer": "1", "grading": {"grader": "g", "task": "", "entry": ""}},
            "no grader 'g'",
        ),
    ],
)
def test_a_row_that_cannot_be_graded_is_named(
    tmp_path: Path, refused: Refused, row: dict[str, Any], words: str
) -> None:
    assert words in refused(main, [write_rows(tmp_path / "answers.jsonl", ROWS[0], row)])
    assert not (tmp_path / "answers-verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "FILE"),
        (["no-such.jsonl"], "no-such.jsonl: no such file"),
        (["answers.txt"], "answers.txt: its name ends with none of .jsonl, .json, .parquet"),
        (["answers.jsonl", "--output", "x.txt"], "--output: must end in one of"),
        (["answers.jsonl", "--grader", "oracle"], "--grader"),
        (["answers.jsonl", "--output", "answers.jsonl"], "is the file of answers itself"),
        (["answers.jsonl", "--deadline", "0"], "--deadline"),
    ],
)
def test_bad_flags_exit_with_2_and_name_the_field(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "answers.jsonl", *ROWS)
    assert words in refused(main, flags)
