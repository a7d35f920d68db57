"""Steps in answers, by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from research.experiments.steps import kind, main, steps


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("First 67 - 21 = 46, then 46 - 56 = -20.", [True, False]),
        (r"\(8 + 0 = 8\) and **8 + 7 = 15**", [True, True]),
        (r"6 \times 7 = 42, 7 \div 2 = 3.5, 6 × 7 = 41", [True, True, False]),
        ("(-3) + 5 = 2; 3 − 5 = -2; 0.1 + 0.2 = 0.3", [True, True, True]),
        ("3 + 4 = 5 + 2", []),  # its right side is no number
        ("3 + 4 + 5 = 12", [True]),
        ("x + 4 = 5, a 1 / 0 = 1, the answer = 7", []),
    ],
)
def test_steps(text: str, right: list[bool]) -> None:
    assert list(steps(text)) == right


@pytest.mark.parametrize(
    ("correct", "boxed", "found", "expected"),
    [
        (True, True, [False], "right"),
        (False, False, [True], "no final answer"),
        (False, True, [], "no step"),
        (False, True, [True, True], "no wrong step"),
        (False, True, [True, False], "a wrong step"),
    ],
)
def test_kinds(correct: bool, boxed: bool, found: list[bool], expected: str) -> None:
    assert kind({"correct": correct, "boxed": boxed}, found) == expected


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        {"text": "1 + 1 = 2", "correct": True, "boxed": True},
        {"text": "1 + 1 = 3, 1 + 2 = 3", "correct": False, "boxed": True},
    ]
    pq.write_table(pa.Table.from_pylist(answers), tmp_path / "part-00000.parquet")
    main([f"base={tmp_path}"])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert cells[1:6] == ["base", "2", "1.50", "0.667", "0.500"]


def test_a_folder_without_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"base={tmp_path}"])
    assert stopped.value.code == 2
    assert "NAME=FOLDER" in capsys.readouterr().err
