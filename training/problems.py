"""Problems with reference answers: from a file, a benchmark by its name, or any hub dataset.

    problems.jsonl | problems.parquet     columns id (optional), problem, answer
    gsm8k                                 a benchmark, from the hub or its local cache
    gsm8k:rows.jsonl                      a file with that benchmark's own columns
    owner/dataset                         with --problem-field and --answer-field

A benchmark is one entry of `BENCHMARKS`: where it lies and which columns hold what.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from training.answer import after_hashes, last_boxed

SUFFIXES = (".jsonl", ".parquet")


class Problem(BaseModel):
    """One problem and its reference answer."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str
    problem: str
    answer: str

    @field_validator("id", "problem", "answer")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty")
        return value.strip()


class Row(NamedTuple):
    """One record of a source, and where it stands, for messages."""

    where: str
    values: dict[str, Any]


# ------------------------------------------------------------------- how an answer is written


def plain(value: Any) -> str:
    """The answer as it stands; 27.0 of a float column is 27."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | dict):
        raise ValueError(f"is a {type(value).__name__}, not one answer")
    return str(value)


def hashed(value: Any) -> str:
    """GSM8K: what follows "####", without thousands separators."""
    answer = after_hashes(str(value))
    if answer is None:
        raise ValueError("has no '####' before its answer")
    return answer.replace(",", "")


def boxed(value: Any) -> str:
    """MATH and its like: the last box of a worked solution."""
    answer = last_boxed(str(value))
    if answer is None:
        raise ValueError("has no \\boxed{} answer")
    return answer


def listed(value: Any) -> str:
    """OlympiadBench: a list of strings in dollar signs; several answers become one list."""
    if not isinstance(value, list) or not value:
        raise ValueError("is not a list of answers")
    return ", ".join(str(answer).replace("$", "").strip() for answer in value)


# ------------------------------------------------------------------------------- the benchmarks


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies and which of its columns hold what.

    Attributes:
        problem: columns that make the problem, those present and not empty joined by a newline.
        answer: the column that holds the answer.
        extract: how the answer is written in it; raises ValueError saying what it lacks.
        id: the column of ids; None: numbered.
        keep: which rows belong to it.
        samples: answers per problem by default (the paper's avg@8 for the two smallest).
    """

    dataset: str
    split: str
    problem: tuple[str, ...]
    answer: str
    config: str | None = None
    extract: Callable[[Any], str] = plain
    id: str | None = None
    keep: Callable[[dict[str, Any]], bool] = lambda _: True
    samples: int = 1


# Column -> how its value begins, in any case.
_OPEN_TEXT_MATHS = {
    "modality": "text", "language": "en", "subject": "math", "question_type": "open",
}  # fmt: skip


def _open_text_maths(row: dict[str, Any]) -> bool:
    # The hub's configuration holds nothing else, a file of the whole benchmark does. A column that
    # is absent decides nothing.
    return all(
        str(row.get(column) or wanted).casefold().startswith(wanted)
        for column, wanted in _OPEN_TEXT_MATHS.items()
    )


def _level_3_to_5(row: dict[str, Any]) -> bool:
    return row.get("level") in ("Level 3", "Level 4", "Level 5")


_GSM8K = Benchmark("openai/gsm8k", "test", ("question",), "answer", config="main", extract=hashed)

BENCHMARKS: dict[str, Benchmark] = {
    # Evaluation.
    "gsm8k": _GSM8K,
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", "test", ("problem",), "answer", id="unique_id"
    ),
    "minerva_math": Benchmark(
        "knoveleng/Minerva-Math", "train", ("problem",), "solution", extract=boxed
    ),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "train", ("context", "question"), "final_answer",
        config="OE_TO_maths_en_COMP", extract=listed, id="id", keep=_open_text_maths,
    ),
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", "train", ("problem",), "answer", id="id", samples=8
    ),
    "amc23": Benchmark("math-ai/amc23", "test", ("question",), "answer", id="id", samples=8),
    # Training.
    "gsm8k_train": Benchmark(
        "openai/gsm8k", "train", ("question",), "answer", config="main", extract=hashed
    ),
    "math_train": Benchmark(
        "DigitalLearningGmbH/MATH-lighteval", "train", ("problem",), "solution",
        config="default", extract=boxed, keep=_level_3_to_5,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------- loading


def load_problems(
    source: str,
    *,
    limit: int | None = None,
    problem_field: str = "problem",
    answer_field: str = "answer",
    id_field: str = "id",
    config: str | None = None,
    split: str | None = None,
) -> list[Problem]:
    """The problems of `source` (see the module's text), in its order, the first `limit` of them.

    Args:
        problem_field, answer_field, id_field: columns, for files and hub datasets; a benchmark
            has its own.
        config, split: of a hub dataset; by default the benchmark's, or "train".

    Raises:
        ValueError: the source is unknown or unreadable, or one of its rows is unusable; the
            message names file, line and field.
    """
    schema, rows = _open(source, problem_field, answer_field, id_field, config, split)
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(row for row in rows if schema.keep(row.values)):
        if limit is not None and len(problems) >= limit:
            break
        problem = _problem(schema, number, row)
        if problem.id in seen:
            raise ValueError(f"{row.where}: id: '{problem.id}' was used by {seen[problem.id]}")
        seen[problem.id] = row.where
        problems.append(problem)
    if not problems:
        raise ValueError(f"problems: {source} holds none")
    return problems


def problems_hash(problems: Iterable[Problem]) -> str:
    """Hex SHA-256 over ids, texts and answers, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(problem.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def benchmark_of(source: str) -> Benchmark | None:
    """The benchmark that `source` names (NAME or NAME:PATH), if it names one."""
    return BENCHMARKS.get(source.partition(":")[0])


def _open(
    source: str,
    problem_field: str,
    answer_field: str,
    id_field: str,
    config: str | None,
    split: str | None,
) -> tuple[Benchmark, Iterator[Row]]:
    """The mapping that applies to `source`, and its rows."""
    benchmark = benchmark_of(source)
    if benchmark is not None and not Path(source).is_file():
        path = source.partition(":")[2]
        if path:
            return benchmark, read_rows(Path(path))
        hub = (benchmark.dataset, config or benchmark.config, split or benchmark.split)
        return benchmark, _hub_rows(*hub)
    own = Benchmark(source, split or "train", (problem_field,), answer_field, config, id=id_field)
    if Path(source).suffix in SUFFIXES or Path(source).exists():
        return own, read_rows(Path(source))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return own, _hub_rows(source, config, own.split)
    raise ValueError(
        f"problems: '{source}' is neither a file ({', '.join(SUFFIXES)}), nor a hub dataset "
        f"(owner/name), nor one of {', '.join(BENCHMARKS)}"
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
        )
    except ValidationError as error:
        detail = error.errors()[0]
        columns = {"id": schema.id, "problem": schema.problem[-1], "answer": schema.answer}
        field = columns.get(str(detail["loc"][0]))
        raise ValueError(f"{row.where}: {field}: {detail['msg']}") from None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL or Parquet file. Raises ValueError naming file and line."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: neither of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Row(f"{path}, line {number}", _json_object(path, number, line))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object")
    return values


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"{path}, row {number}", values)


def _hub_rows(dataset: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a hub dataset, downloaded or from the local cache."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the library raises a dozen kinds for "there is no such thing"
        raise ValueError(
            f"problems: {dataset} ({config or 'default'}, {split}) could not be loaded: {error}"
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(f"{dataset}, row {number}", values)
