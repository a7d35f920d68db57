r"""Grade answers that were made elsewhere, with the graders that training and evaluation use.

    python -m training.grade answers.jsonl --output verdicts.jsonl

A row of the file (JSON, JSONL, Parquet, CSV, TSV) has the columns `text`, what a model wrote, and
`answer`, the reference. A column `grader` may name what grades it: math (the default), choice or
text. A row from a problems file of Reasoning Gym has `grading` instead. Each row is written with
five more columns:

    verdict    right, wrong or cannot tell
    correct    true, false, or null where the grader cannot tell
    reason     why
    boxed      the text has a complete \boxed{...}
    timed_out  the grader came to no decision within --deadline
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import CliPositionalArg

from adapters.files import atomic_write
from training.config import Config
from training.grading import Verdict, Verifier
from training.problems.problem import Grading, Problem
from training.problems.rows import DELIMITERS, SUFFIXES, Row, read_rows
from training.problems.table import PLAIN_GRADERS, value_at

logger = logging.getLogger("training.grade")

_BATCH = 4096  # answers verified together
_NAMED = 5  # rows named in a warning
COLUMNS = ("verdict", "correct", "reason", "boxed", "timed_out")  # those that are added


class GradeConfig(Config):
    """Settings of a grading."""

    program: ClassVar[str] = "python -m training.grade"

    file: CliPositionalArg[Path] = Field(
        description="Answers: a JSON, JSONL, Parquet, CSV or TSV file."
    )
    output: Path | None = Field(
        None,
        description="JSONL, Parquet, CSV or TSV file to write; default: FILE-verdicts.jsonl beside "
        "it.",
    )
    text_field: str = Field("text", description="Column with what the model wrote.")
    answer_field: str = Field("answer", description="Column with the reference answer.")
    grader_field: str = Field("grader", description="Column that names a row's grader.")
    grader: Literal["math", "choice", "text"] = Field(
        "math", description="What grades the rows that name no grader."
    )
    whole_text: bool = Field(
        False, description="The texts are final answers themselves: nothing is looked for in them."
    )
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
    texts = [_text(row, config) for row in rows]
    problems = [_problem(row, config) for row in rows]
    with Verifier(config.deadline) as verifier:
        _name_bad_references(verifier, problems)
        verdicts = [
            verdict
            for start in range(0, len(rows), _BATCH)
            for verdict in verifier.check(
                texts[start : start + _BATCH], problems[start : start + _BATCH]
            )
        ]
    _write(config.target, [row.values | _columns(v) for row, v in zip(rows, verdicts, strict=True)])
    return verdicts


def _columns(verdict: Verdict) -> dict[str, Any]:
    """What is written beside a row."""
    return {"verdict": verdict.outcome} | {name: getattr(verdict, name) for name in COLUMNS[1:]}


def _name_bad_references(verifier: Verifier, problems: Sequence[Problem]) -> None:
    """Warn of references with which answers cannot be compared."""
    # Rows often share a reference; each is looked at once.
    distinct = {(one.answer, one.grading): one for one in reversed(problems)}
    found = [
        f"{problem.id}: {problem.answer[:60]!r}: {fault}"
        for problem, fault in zip(
            distinct.values(), verifier.check_references(list(distinct.values())), strict=True
        )
        if fault is not None
    ]
    if found:
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        logger.warning(
            "%d references cannot be graded (%s%s)", len(found), "; ".join(found[:_NAMED]), more
        )


def _text(row: Row, config: GradeConfig) -> str:
    column = config.text_field
    value = value_at(row, column)
    if value is None and column in row.values:
        value = ""  # a model that said nothing
    if not isinstance(value, str):
        raise ValueError(f"{row.where}: {column}: must be text; --text-field names another column")
    return f"\\boxed{{{value}}}" if config.whole_text else value


def _problem(row: Row, config: GradeConfig) -> Problem:
    """The reference answer, with the grader that decides."""
    column = config.answer_field
    value = value_at(row, column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        raise ValueError(
            f"{row.where}: {column}: must be a reference answer; --answer-field names another "
            "column"
        )
    try:
        return Problem(
            id=row.where,
            problem=str(row.values.get("problem") or row.where),
            answer=str(value),
            grading=_grading(row, config),
        )
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, ("grading", *detail["loc"])))
        raise ValueError(f"{row.where}: {field}: {detail['msg']}") from None


def _grading(row: Row, config: GradeConfig) -> Grading | None:
    grading = row.values.get("grading")
    if grading is not None:
        return Grading.model_validate(grading)
    name = value_at(row, config.grader_field) or config.grader
    if name not in PLAIN_GRADERS:
        raise ValueError(
            f"{row.where}: {config.grader_field}: '{name}' is none of {', '.join(PLAIN_GRADERS)}; "
            "--grader-field names another column"
        )
    return None if name == "math" else Grading(grader=name, task="", entry="")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as `path` in one rename."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(COLUMNS)
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            # Of rows alone, the first one's keys would be the columns.
            whole = [dict.fromkeys(names) | row for row in rows]
            table = pyarrow.Table.from_pylist(whole)
            if "correct" in table.column_names:  # a column of nulls has no type of its own
                place = table.column_names.index("correct")
                table = table.set_column(place, "correct", table["correct"].cast(pyarrow.bool_()))
            pyarrow.parquet.write_table(table, temporary)
        elif path.suffix in (".csv", ".tsv"):
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names, delimiter=DELIMITERS.get(path.suffix, ","))
                writer.writeheader()
                writer.writerows(rows)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = GradeConfig.begin(argv)
    with config.usage_errors():
        verdicts = grade(config)
    print(summary(verdicts, config.target))


def summary(verdicts: Sequence[Verdict], target: Path) -> str:
    """One line with the counts, and one for each reason why an answer could not be graded."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    graded = counts["right"] + counts["wrong"]
    share = f" ({counts['right'] / graded:.3f} of those graded)" if graded else ""
    lines = [
        f"{len(verdicts)} answers: {counts['right']} right{share}, {counts['wrong']} wrong, "
        f"{counts['cannot tell']} cannot tell, {sum(one.boxed for one in verdicts)} boxed, "
        f"{sum(one.timed_out for one in verdicts)} timed out; {target}"
    ]
    reasons = Counter(one.reason for one in verdicts if one.correct is None)
    lines += [f"  cannot tell, {count}: {reason}" for reason, count in reasons.most_common(10)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
