"""A cell of the report's tables, and where cells are kept.

A cell is what was measured of one base in one way, with one seed. A new one is a small JSON file:

runs/reproduce/cells/tiny-qwen2/fit/method/seed0.json

{"cell": "tiny-qwen2/fit/method/seed0", "settings": {"flags": [], "seed": 0}, "base": "5ab0...",
 "machine": {...}, "seconds": 151.2,
 "result": {"gated": {"short": {"scores": [1.0, 0.0, ...], "tokens": 5982, ...}, ...}, ...}}

`python -m research.paper.merge` moves new cells into two files that are kept with the code:

    scores.parquet   a row for each problem: cell, answers, benchmark, problem, score
    cells.jsonl      a line for each cell: all the rest, with the number of scores in their place

`base` is the fingerprint of the base's weights. A base that was made anew may differ in its last
bits, and its cells do not belong into one table with the old ones. The oldest cells lack it.
"""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from adapters.files import atomic_write, write_json, write_text
from training.provenance import machine

Record = dict[str, Any]  # a cell's JSON
SCHEMA = pa.schema(
    [
        ("cell", pa.string()),  # Cell.id
        ("answers", pa.string()),  # who answered: "gated", "always", "greedy", ...
        ("benchmark", pa.string()),
        ("problem", pa.int16()),  # its place in the benchmark, from 0
        ("score", pa.float64()),  # share of right answers
    ]
)


@dataclass(frozen=True)
class Cell:
    """What is done to a base.

    Attributes:
        base: its name.
        kind: what is done.
        variant: of a fit, its ablation; of what looks at something tuned, what it was.
        seed: None for what has none.
        flags: of the command that makes it.
    """

    base: str
    kind: str
    variant: str = ""
    seed: int | None = None
    flags: tuple[str, ...] = field(default=(), hash=False)

    @property
    def id(self) -> str:
        """BASE/KIND[/VARIANT][/seedN]"""
        parts = [self.base, self.kind, self.variant]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return "/".join(part for part in parts if part)


class Scores(NamedTuple):
    """The scores of one benchmark's problems in a cell."""

    answers: str
    benchmark: str
    scores: list[float]


def split_scores(record: Record) -> tuple[Record, list[Scores]]:
    """A copy of `record` with numbers of scores in place of the scores, and the scores."""
    found: list[Scores] = []
    result = dict(record["result"])
    for name, answers in result.items():
        if not _has_scores(answers):
            continue
        found += [Scores(name, benchmark, one["scores"]) for benchmark, one in answers.items()]
        result[name] = {
            benchmark: one | {"scores": len(one["scores"])} for benchmark, one in answers.items()
        }
    return record | {"result": result}, found


def join_scores(row: Record, scores: dict[tuple[str, str], list[float]]) -> Record:
    """The inverse of `split_scores`; `scores` are by answers and benchmark.

    Raises:
        ValueError: some are missing, or too many.
    """
    result = dict(row["result"])
    for name, answers in result.items():
        if not _has_scores(answers):
            continue
        result[name] = {}
        for benchmark, one in answers.items():
            found = scores.get((name, benchmark), [])
            if len(found) != one["scores"]:
                raise ValueError(
                    f"{row['cell']}: {len(found)} scores of {name}, {benchmark}, "
                    f"wanted {one['scores']}"
                )
            result[name][benchmark] = one | {"scores": found}
    return row | {"result": result}


def _has_scores(value: Any) -> bool:
    """Is `value` benchmark -> scores and the rest?"""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(one, dict) and "scores" in one for one in value.values())
    )


class CellStore:
    """All cells that were made.

    Args:
        results: folder of scores.parquet and cells.jsonl; either may be missing.
        new: folder of cells that are not merged yet.
    """

    def __init__(self, results: Path, new: Path) -> None:
        self.table, self.scores = results / "cells.jsonl", results / "scores.parquet"
        self._new = new

    def path(self, cell: Cell) -> Path:
        """The file of a new cell."""
        return self._new / f"{cell.id}.json"

    def read(self, cell: Cell, base: str | None = None) -> dict[str, Any] | None:
        """The result of `cell`; None if it was not made yet.

        Args:
            base: fingerprint of the base that is at hand; None: any will do.

        Raises:
            ValueError: its file is no cell's, or it was made with other flags or from another base.
        """
        path = self.path(cell)
        record = read_record(path) if path.exists() else self._merged.get(cell.id)
        if record is None:
            return None
        flags = record["settings"]["flags"]
        drop = f"python -m research.paper.merge --drop '{cell.id}'"
        if flags != list(cell.flags):
            raise ValueError(
                f"{cell.id}: made with {flags}, wanted {list(cell.flags)}; remove it: {drop}"
            )
        if base is not None and record.get("base", base) != base:
            raise ValueError(
                f"{cell.id}: made from other weights of {cell.base}; bring them back, or remove "
                f"its cells to make them anew: python -m research.paper.merge --drop "
                f"'{cell.base}/*'"
            )
        result: dict[str, Any] = record["result"]
        return result

    def write(self, cell: Cell, result: dict[str, Any], seconds: float, base: str) -> None:
        """Keep `result`, and the fingerprint of the `base` it was made from, as a new cell."""
        values = {
            "cell": cell.id,
            "settings": {"flags": list(cell.flags), "seed": cell.seed},
            "base": base,
            "machine": machine(),
            "seconds": round(seconds, 1),
            "result": result,
        }
        write_json(self.path(cell), values)

    def new(self) -> list[Path]:
        """The files of cells that are not merged yet."""
        return sorted(self._new.rglob("*.json"))

    def merge(self) -> list[str]:
        """Move all new cells into the two files; the ids of those moved.

        Raises:
            ValueError: a file is no cell's, or differs from the merged cell of the same id.
        """
        files = self.new()
        found = {record["cell"]: record for record in map(read_record, files)}
        for name, record in found.items():
            if self._merged.get(name, record) != record:
                raise ValueError(
                    f"{name}: merged already, with other content; remove one of the two: the file "
                    f"below {self._new}, or both by python -m research.paper.merge --drop '{name}'"
                )
        if found:
            self._merged = self._merged | found
            # Killed between the two, the scores are there for a line that is not: harmless.
            self._write_scores()
            self._write_table()
        for file in files:
            file.unlink()
        return sorted(found)

    def drop(self, patterns: Iterable[str]) -> list[str]:
        """Remove the cells whose ids match one of `patterns`, new or merged; their ids."""
        wanted = list(patterns)

        def matches(name: str) -> bool:
            return any(fnmatch.fnmatch(name, pattern) for pattern in wanted)

        files = {
            file: name
            for file in self.new()
            if matches(name := file.relative_to(self._new).with_suffix("").as_posix())
        }
        for file in files:
            file.unlink()
        gone = {name for name in self._merged if matches(name)}
        if gone:
            self._merged = {n: record for n, record in self._merged.items() if n not in gone}
            self._write_table()
            self._write_scores()
        return sorted(gone | set(files.values()))

    @cached_property
    def _merged(self) -> dict[str, Record]:
        """Id -> the merged cell."""
        if not self.table.exists():
            return {}
        scores = read_scores(self.scores)
        lines = self.table.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["cell"]: join_scores(row, scores[row["cell"]]) for row in rows}

    def _write_table(self) -> None:
        rows = [split_scores(self._merged[name])[0] for name in sorted(self._merged)]
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        write_text(self.table, "".join(lines))

    def _write_scores(self) -> None:
        found = ((name, split_scores(self._merged[name])[1]) for name in sorted(self._merged))
        write_scores(self.scores, ((name, one) for name, scores in found for one in scores))


def read_record(path: Path) -> Record:
    """The JSON of a new cell.

    Raises:
        ValueError: it is not one.
    """
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        _ = record["cell"], record["settings"]["flags"], record["result"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a cell ({error!r}); remove it") from None
    return record


def read_scores(path: Path) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Cell -> answers and benchmark -> the score of each problem, in order.

    Raises:
        ValueError: a problem is missing, or out of order.
    """
    found: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(dict)
    columns = pq.read_table(path, schema=SCHEMA).columns
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    for cell, answers, benchmark, problem, score in rows:
        scores = found[cell].setdefault((answers, benchmark), [])
        if problem != len(scores):
            raise ValueError(f"{path}: {cell}, {answers}, {benchmark}: no problem {len(scores)}")
        scores.append(score)
    return found


def write_scores(path: Path, scores: Iterable[tuple[str, Scores]]) -> None:
    """Write the scores of (cell, Scores) as Parquet, atomically."""
    rows = (
        (cell, one.answers, one.benchmark, problem, score)
        for cell, one in scores
        for problem, score in enumerate(one.scores)
    )
    table = pa.Table.from_pylist(
        [dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA
    )
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19)
