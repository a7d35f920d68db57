"""How often grading errs: this project's and math-verify's own, on the same graded answers.

    python -m benchmarks.grading                      # the suite that is also a test
    python -m benchmarks.grading --pairs pairs.jsonl  # one's own

Each row has `text`, what a model wrote, `answer`, the reference, and `right`, whether it is. A
column `class` groups them. A false right weighs most: training rewards it. math-verify is called as
its documentation says, on the whole text, with the reference in a box, which it grades best.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from benchmarks.report import print_table, save
from training.config import Config
from training.grading import Verifier
from training.problems.rows import Row, read_rows

SUITE = Path("tests/training/data/graded-answers.jsonl")


class GradingConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.grading"

    pairs: Path = Field(SUITE, description="Graded answers: JSONL, Parquet or CSV.")
    deadline: float = Field(20.0, gt=0, description="Seconds for one answer.")


def pair(row: Row) -> dict[str, Any]:
    """The values of a row; CSV writes `right` as a text."""
    if missing := {"text", "answer", "right"} - set(row.values):
        raise ValueError(f"--pairs: {row.where}: there is no {', '.join(sorted(missing))}")
    try:
        right = TypeAdapter(bool).validate_python(row.values["right"])
    except ValidationError:
        raise ValueError(f"--pairs: {row.where}: `right` is neither true nor false") from None
    return row.values | {"right": right}


def ours(rows: Sequence[dict[str, Any]], deadline: float) -> list[bool | None]:
    """The verdicts of `training.grading`."""
    with Verifier(deadline) as verifier:
        texts, answers = ([str(row[name]) for row in rows] for name in ("text", "answer"))
        return [verdict.correct for verdict in verifier.check(texts, answers)]


def math_verify(rows: Sequence[dict[str, Any]]) -> list[bool | None]:
    """The verdicts of math-verify; it has two results."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found: list[bool | None] = []
    for row in tqdm(rows, desc="math-verify", unit="answer", delay=2.0):
        gold = parse(rf"\boxed{{{row['answer']}}}")
        found.append(bool(verify(gold, parse(str(row["text"])))))
    return found


def counts(rows: Sequence[dict[str, Any]], verdicts: Sequence[bool | None]) -> Counter[str]:
    """How many verdicts are false rights, false wrongs, and none."""
    found: Counter[str] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict is None:
            found["cannot tell"] += 1
        elif verdict and not row["right"]:
            found["false right"] += 1
        elif not verdict and row["right"]:
            found["false wrong"] += 1
    return found


def main(argv: list[str] | None = None) -> None:
    """Grade, print a table by class, write the figures."""
    config = GradingConfig.load(argv)
    with config.usage_errors():
        rows = [pair(row) for row in read_rows(config.pairs)]
        if not rows:
            raise ValueError(f"--pairs: {config.pairs}: there is no pair in it")
    seconds = {}
    verdicts = {}
    for name, grade in (
        ("ours", lambda: ours(rows, config.deadline)),
        ("math-verify", lambda: math_verify(rows)),
    ):
        start = time.monotonic()
        verdicts[name] = grade()
        seconds[name] = time.monotonic() - start
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(str(row.get("class", "")), []).append(place)
    table = [_row(name, rows, verdicts, places) for name, places in sorted(groups.items())]
    table.append(_row("all", rows, verdicts, range(len(rows))))
    print_table(
        [
            "class", "pairs", "wrong ones", "false right", "false wrong", "cannot tell",
            "math-verify: false right", "false wrong",
        ],
        table,
    )  # fmt: skip
    total = {name: dict(counts(rows, found)) for name, found in verdicts.items()}
    save("grading", {"pairs": len(rows), "counts": total, "seconds": seconds})


def _row(
    name: str,
    rows: Sequence[dict[str, Any]],
    verdicts: dict[str, list[bool | None]],
    places: Sequence[int],
) -> list[str]:
    """The counts of the rows at `places`."""
    part = [rows[place] for place in places]
    mine = counts(part, [verdicts["ours"][place] for place in places])
    theirs = counts(part, [verdicts["math-verify"][place] for place in places])
    wrong = sum(not row["right"] for row in part)
    figures = [mine["false right"], mine["false wrong"], mine["cannot tell"]]
    figures += [theirs["false right"], theirs["false wrong"]]
    return [name, str(len(part)), str(wrong), *map(str, figures)]


if __name__ == "__main__":
    main()
