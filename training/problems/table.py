"""From the rows of a file or dataset to problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from training.problems.benchmarks import BENCHMARKS, DATA_DIR, Benchmark, benchmark_of, local_copy
from training.problems.problem import Grading, Problem
from training.problems.rows import SUFFIXES, Row, hub_rows, read_rows


class Columns(NamedTuple):
    """Where a file or hub dataset that is no benchmark keeps its problems."""

    problem: str = "problem"
    answer: str = "answer"
    id: str = "id"


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
        problem = _problem(schema, number, row)
        if problem.id in seen:
            raise ValueError(f"{row.where}: id: '{problem.id}' was used by {seen[problem.id]}")
        seen[problem.id] = row.where
        yield problem


def _open(
    source: str, columns: Columns, place: Place, data_dir: Path | None
) -> tuple[Benchmark, Iterator[Row]]:
    """The mapping that applies to `source`, and its rows."""
    benchmark = benchmark_of(source)
    if benchmark is not None and not Path(source).is_file():
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
    if Path(source).suffix in SUFFIXES or (source.strip() and Path(source).exists()):
        return own, read_rows(Path(source))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return own, hub_rows(source, place.config, split)
    raise ValueError(
        f"'{source}' is neither a file ({', '.join(SUFFIXES)}), nor a hub dataset (owner/name), "
        f"nor reasoning_gym:NAME, nor one of {', '.join(BENCHMARKS)}"
    )


def _problem(schema: Benchmark, number: int, row: Row) -> Problem:
    """The problem that `row` holds; `number` counts the rows kept."""
    parts = [row.values.get(column) for column in schema.problem]
    if parts[-1] is None:  # the last column is the problem proper
        raise ValueError(f"{row.where}: {schema.problem[-1]}: is missing")
    if row.values.get(schema.answer) is None:
        raise ValueError(f"{row.where}: {schema.answer}: is missing")
    try:
        answer = schema.extract(row.values[schema.answer])
    except ValueError as error:
        raise ValueError(f"{row.where}: {schema.answer}: {error}") from None
    given = row.values.get(schema.id) if schema.id else None
    try:
        return Problem(
            id=f"{number:05d}" if given is None else given,
            problem="\n".join(str(part).strip() for part in parts if part),
            answer=answer,
            grading=_grading(row),
            source=_source(row),
        )
    except ValidationError as error:
        detail = error.errors()[0]
        columns = {"id": schema.id, "problem": schema.problem[-1], "answer": schema.answer}
        field = columns.get(str(detail["loc"][0]), f"grading.{detail['loc'][0]}")
        raise ValueError(f"{row.where}: {field}: {detail['msg']}") from None


def _grading(row: Row) -> Grading | None:
    """The grader of a problem that `write_problems` stored; a column of other values is ignored."""
    value = row.values.get("grading")
    return Grading(**value) if isinstance(value, dict) and "grader" in value else None


def _source(row: Row) -> str:
    value = row.values.get("source")
    return value if isinstance(value, str) else ""
