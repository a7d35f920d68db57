"""The benchmarks that have a name: where each lies, and which of its columns hold what."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.grading.final_answer import after_hashes, last_boxed
from training.problems.rows import SUFFIXES

DATA_DIR = "REASONMAXXER_DATA_DIR"  # environment variable


# ------------------------------------------------------------------- how an answer is written


def plain(value: Any) -> str:
    """The answer as it stands; 27.0 of a float column is 27. Of a worked solution, its answer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | dict):
        raise ValueError(f"is a {type(value).__name__}, not one answer")
    text = str(value)
    if "####" in text or "boxed" in text:
        return last_boxed(text) or after_hashes(text) or text
    return text


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
        trains: it is trained on, not measured by.
        copy: the benchmark of which it is a part, whose local copy it reads; empty: its own.
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
    trains: bool = False
    copy: str = ""


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


_GSM8K = Benchmark("openai/gsm8k", "test", ("question",), "answer", config="main", extract=hashed)

BENCHMARKS: dict[str, Benchmark] = {
    # Evaluation.
    "gsm8k": _GSM8K,
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", "test", ("problem",), "answer", id="unique_id"
    ),
    "math500_easy": Benchmark(  # for small models
        "HuggingFaceH4/MATH-500", "test", ("problem",), "answer", id="unique_id",
        keep=lambda row: str(row.get("level")) in ("1", "2", "3"), copy="math500",
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
        "openai/gsm8k", "train", ("question",), "answer", config="main", extract=hashed,
        trains=True,
    ),
    "math_train": Benchmark(
        "DigitalLearningGmbH/MATH-lighteval", "train", ("problem",), "solution",
        config="default", extract=boxed, trains=True,
        keep=lambda row: row.get("level") in ("Level 3", "Level 4", "Level 5"),
    ),
}  # fmt: skip


def benchmark_of(source: str) -> Benchmark | None:
    """The benchmark that `source` names (NAME or NAME:PATH), if it names one."""
    return BENCHMARKS.get(source.partition(":")[0])


def local_copy(name: str, data_dir: Path | None = None) -> Path | None:
    """The file NAME.jsonl or NAME.parquet in `data_dir`, or in the folder that DATA_DIR names.

    A part of a benchmark reads the whole one's.

    Raises:
        ValueError: the folder does not exist.
    """
    given = os.environ.get(DATA_DIR)
    folder = data_dir or (Path(given) if given else None)
    if folder is None:
        return None
    if not os.path.isdir(folder):
        raise ValueError(f"{'data-dir' if data_dir else DATA_DIR}: {folder} is not a folder")
    benchmark = BENCHMARKS.get(name)
    stem = (benchmark and benchmark.copy) or name
    files = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
