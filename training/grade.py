r"""Grade answers that were made elsewhere, with the graders that training and evaluation use.

    python -m training.grade answers.jsonl --output verdicts.jsonl

A row of the JSONL or Parquet file has the columns `text`, what a model wrote, and `answer`, the
reference. A row from a problems file of Reasoning Gym also has `grading`, which names its grader.
Each row is written with three more columns:

    correct    the final answer is right
    boxed      the text has a complete \boxed{...}
    timed_out  the grader came to no decision within --deadline; `correct` is then false
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import CliPositionalArg

from adapters.files import atomic_write
from training.config import Config
from training.problems.problem import Grading, Problem
from training.problems.rows import SUFFIXES, Row, read_rows
from training.verify import Verdict, Verifier

_BATCH = 4096  # answers verified and written together


class GradeConfig(Config):
    """Settings of a grading."""

    program: ClassVar[str] = "python -m training.grade"

    file: CliPositionalArg[Path] = Field(description="Answers: a JSONL or Parquet file.")
    output: Path | None = Field(
        None, description="JSONL or Parquet file to write; default: FILE-verdicts.jsonl beside it."
    )
    text_field: str = Field("text", description="Column with what the model wrote.")
    answer_field: str = Field("answer", description="Column with the reference answer.")
    deadline: float = Field(5.0, gt=0, description="Seconds for grading one answer.")

    @field_validator("output")
    @classmethod
    def _can_be_written(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix not in SUFFIXES:
            raise ValueError(f"must end in one of {', '.join(SUFFIXES)}")
        return value

    @property
    def target(self) -> Path:
        """The file that is written."""
        return self.output or self.file.with_name(f"{self.file.stem}-verdicts.jsonl")


def grade(config: GradeConfig) -> list[Verdict]:
    """Grade every row of the file, write the rows with their verdicts, and return the verdicts.

    Raises:
        ValueError: the file, or one of its rows, cannot be graded.
    """
    if config.target.resolve() == config.file.resolve():
        raise ValueError(f"--output: {config.target} is the file of answers itself")
    rows = list(read_rows(config.file))
    texts = [_text(row, config.text_field) for row in rows]
    problems = [_problem(row, config.answer_field) for row in rows]
    with Verifier(config.deadline) as verifier:
        verdicts = [
            verdict
            for start in range(0, len(rows), _BATCH)
            for verdict in verifier.check(
                texts[start : start + _BATCH], problems[start : start + _BATCH]
            )
        ]
    _write(config.target, [row.values | v._asdict() for row, v in zip(rows, verdicts, strict=True)])
    return verdicts


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str):
        raise ValueError(f"{row.where}: {column}: must be text; --text-field names another column")
    return value


def _problem(row: Row, column: str) -> Problem | str:
    """The reference answer, or the problem whose own grader decides."""
    value = row.values.get(column)
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        raise ValueError(
            f"{row.where}: {column}: must be a reference answer; --answer-field names another "
            "column"
        )
    grading = row.values.get("grading")
    if grading is None:
        return str(value)
    try:
        return Problem(
            id=row.where,
            problem=str(row.values.get("problem") or row.where),
            answer=str(value),
            grading=Grading.model_validate(grading),
        )
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, ("grading", *detail["loc"])))
        raise ValueError(f"{row.where}: {field}: {detail['msg']}") from None


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as `path` in one rename."""
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(_lines(rows))


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, default=str) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    config = GradeConfig.load(argv)
    with config.usage_errors():
        verdicts = grade(config)
    right, boxed = sum(one.correct for one in verdicts), sum(one.boxed for one in verdicts)
    overdue = sum(one.timed_out for one in verdicts)
    share = f" ({right / len(verdicts):.3f})" if verdicts else ""
    print(
        f"{len(verdicts)} answers: {right} right{share}, {boxed} boxed, {overdue} timed out; "
        f"{config.target}"
    )


if __name__ == "__main__":
    main()
