"""From the rows of a file or dataset to problems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from training.problems.benchmarks import BENCHMARKS, DATA_DIR, Benchmark, benchmark_of, local_copy
from training.problems.chat import COLUMNS as CHAT_COLUMNS
from training.problems.chat import Message, answer_of, messages_of, question_of
from training.problems.problem import Grading, Problem
from training.problems.rows import SUFFIXES, Row, hub_rows, read_rows

PLAIN_GRADERS = ("math", "choice", "text")  # those that need to know nothing but the reference


class Columns(NamedTuple):
    """Where a file or hub dataset that is no benchmark keeps its problems."""

    problem: str = "problem"
    answer: str = "answer"
    id: str = "id"
    grader: str = "math"


class Place(NamedTuple):
    """Which part of a hub dataset; None: the benchmark's own, or "train"."""

    config: str | None = None
    split: str | None = None


def table_problems(
    source: str, columns: Columns, place: Place, data_dir: Path | None
) -> Iterator[Problem]:
    """The problems of a file, benchmark or hub dataset, in its order.

    Raises:
        ValueError: the source is unknown or unreadable, or one of its rows is unusable.
    """
    schema, rows = _open(source, columns, place, data_dir)
    seen: dict[str, str] = {}
    for number, row in enumerate(row for row in rows if schema.keep(row.values)):
        problem = _problem(schema, number, row, columns.grader)
        if problem.id in seen:
            raise ValueError(f"{row.where}: id: '{problem.id}' was used by {seen[problem.id]}")
        seen[problem.id] = row.where
        yield problem


def _open(
    source: str, columns: Columns, place: Place, data_dir: Path | None
) -> tuple[Benchmark, Iterator[Row]]:
    """The mapping that applies to `source`, and its rows."""
    benchmark = benchmark_of(source)
    if benchmark is not None and not os.path.isfile(source):
        name, colon, path = source.partition(":")
        if colon and not path.strip():
            raise ValueError(f"'{source}' lacks a file behind the colon")
        if colon:
            return benchmark, read_rows(Path(path))
        # A local copy holds the benchmark as it is; another part of the dataset is on the hub.
        copy = local_copy(name, data_dir) if place == Place() else None
        if copy is not None:
            return benchmark, read_rows(copy)
        hint = f"; a local copy {name}.jsonl is looked for in --data-dir or {DATA_DIR}"
        rows = hub_rows(
            benchmark.dataset,
            place.config or benchmark.config,
            place.split or benchmark.split,
            hint,
        )
        return benchmark, rows
    split = place.split or "train"
    own = Benchmark(source, split, (columns.problem,), columns.answer, place.config, id=columns.id)
    if Path(source).suffix in SUFFIXES or os.path.exists(source):
        return own, read_rows(Path(source))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return own, hub_rows(source, place.config, split)
    raise ValueError(
        f"'{source}' is neither a file ({', '.join(SUFFIXES)}), nor a hub dataset (owner/name), "
        f"nor reasoning_gym:NAME, nor one of {', '.join(BENCHMARKS)}"
    )


def _problem(schema: Benchmark, number: int, row: Row, grader: str) -> Problem:
    """The problem that `row` holds; `number` counts the rows kept."""
    messages = _messages(schema, row)
    question = _question(schema, row) if messages is None else None
    answer = _answer(schema, row, messages)
    given = value_at(row, schema.id) if schema.id else None
    source = row.values.get("source")
    try:
        if messages is not None:
            question = question_of(messages)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    try:
        return Problem(
            id=f"{number:05d}" if given is None else given,
            problem=question,
            answer=answer,
            grading=_grading(row, grader),
            source=source if isinstance(source, str) else "",
        )
    except ValidationError as error:
        detail = error.errors()[0]
        columns = {"id": schema.id, "problem": schema.problem[-1], "answer": schema.answer}
        field = columns.get(str(detail["loc"][0]), f"grading.{detail['loc'][0]}")
        raise ValueError(f"{row.where}: {field}: {detail['msg']}") from None


def value_at(row: Row, column: str) -> Any:
    """The value of a column; `a.b` is b within a, unless there is a column of that very name."""
    if column in row.values or "." not in column:
        return row.values.get(column)
    value: Any = row.values
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _messages(schema: Benchmark, row: Row) -> list[Message] | None:
    """The messages of a row in chat format, else None."""
    own = schema.problem[-1]
    names = [own] if value_at(row, own) is not None else list(CHAT_COLUMNS)
    for name in names:
        try:
            found = messages_of(value_at(row, name))
        except ValueError as error:
            raise ValueError(f"{row.where}: {name}: {error}") from None
        if found is not None:
            return found
    return None


def _question(schema: Benchmark, row: Row) -> str:
    parts = [value_at(row, column) for column in schema.problem]
    if parts[-1] is None:  # the last column is the problem proper
        raise ValueError(_missing(row, schema.problem[-1], "--problem-field"))
    if isinstance(parts[-1], list | dict):
        raise ValueError(f"{row.where}: {schema.problem[-1]}: is neither text nor chat messages")
    return "\n".join(str(part).strip() for part in parts if part)


def _answer(schema: Benchmark, row: Row, messages: list[Message] | None) -> str:
    value = value_at(row, schema.answer)
    if value is None and messages is not None:
        try:
            return answer_of(messages)
        except ValueError as error:
            raise ValueError(f"{row.where}: {schema.answer}: is missing, and {error}") from None
    if value is None:
        raise ValueError(_missing(row, schema.answer, "--answer-field"))
    try:
        return schema.extract(value)
    except ValueError as error:
        raise ValueError(f"{row.where}: {schema.answer}: {error}") from None


def _missing(row: Row, column: str, flag: str) -> str:
    there = ", ".join(sorted(row.values)) or "none"
    return f"{row.where}: {column}: is missing; the columns are {there}; {flag} names another one"


def _grading(row: Row, grader: str) -> Grading | None:
    """The grader that the row names, or `grader`; None: mathematics.

    A row that `write_problems` stored has a column `grading`; one of other values is ignored.
    """
    value = row.values.get("grading")
    if isinstance(value, dict) and "grader" in value:
        return Grading(**value)
    name = row.values.get("grader") or grader
    if not isinstance(name, str) or name not in PLAIN_GRADERS:
        raise ValueError(
            f"{row.where}: grader: '{name}' is none of {', '.join(PLAIN_GRADERS)}; problems of "
            "Reasoning Gym have a column grading"
        )
    return None if name == "math" else Grading(grader=name, task="", entry="")
