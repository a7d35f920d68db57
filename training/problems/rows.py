"""Records of problems: from JSONL, Parquet or CSV, or from a dataset on the hub."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".parquet", ".csv")


class Row(NamedTuple):
    """One record of a source, and where it stands, for messages."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL, Parquet or CSV file. Raises ValueError naming file and line."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: neither of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        if path.suffix == ".csv":
            yield from _csv_rows(path)
            return
        with path.open(encoding="utf-8-sig") as file:
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


def _csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; an empty field is a value that is missing."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames
            if names is None:
                return
            if len(set(names)) < len(names):
                raise ValueError(f"{path}, line 1: a column's name occurs twice")
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise ValueError(f"{where}: has not the {len(names)} fields of the header")
                yield Row(where, {name: value or None for name, value in values.items()})
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"{path}, row {number}", values)


def hub_rows(dataset: str, config: str | None, split: str, hint: str = "") -> Iterator[Row]:
    """The rows of a hub dataset, downloaded or from the local cache.

    Args:
        hint: what else could be done, for the message if there is no such dataset.
    """
    import datasets

    try:
        rows = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the library raises a dozen kinds for "there is no such thing"
        raise ValueError(
            f"{dataset} ({config or 'default'}, {split}) could not be loaded: {error}{hint}"
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(f"{dataset}, row {number}", values)
