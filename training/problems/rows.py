"""Records of problems: from a file of JSON, Parquet or CSV, or from a dataset on the hub.

.jsonl           one object a line
.json            a list of objects, or the same as .jsonl
.csv, .tsv       a header, then fields between commas, semicolons or tabs
.parquet
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from adapters.json_keys import unique_keys

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
DELIMITERS = {".tsv": "\t"}


class Row(NamedTuple):
    """One record of a source, and where it stands, for messages."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file. Raises ValueError naming file and line."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: its name ends with none of {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        if path.suffix in (".csv", ".tsv"):
            yield from _csv_rows(path)
        elif path.suffix == ".json" and _begins_a_list(path):
            yield from _listed_rows(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        where = f"{path}, line {number}"
                        yield Row(where, _object(where, _parsed(where, line)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error


def _begins_a_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        return next((line for line in file if line.strip()), "").lstrip().startswith("[")


def _listed_rows(path: Path) -> Iterator[Row]:
    for number, value in enumerate(_parsed(str(path), path.read_text("utf-8-sig")), 1):
        where = f"{path}, object {number}"
        yield Row(where, _object(where, value))


def _parsed(where: str, text: str) -> Any:
    """The JSON value that `text` is, each key of an object once.

    NaN is a value that is missing, as pandas writes it. Half of a character, where a text was cut
    off, becomes a question mark.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=lambda _: None)
        if r"\u" in text:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    return value


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object")
    return value


def _csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; an empty field is a value that is missing."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = DELIMITERS.get(path.suffix) or _delimiter(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, strict=True, delimiter=delimiter)
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


def _delimiter(header: str) -> str:
    """What stands between the names of columns: a comma, or what spreadsheets write abroad."""
    for delimiter in ",;\t":
        if len(next(csv.reader(StringIO(header), delimiter=delimiter), [])) > 1:
            return delimiter
    return ","


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"{path}, row {number}", _without_nan(values))


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """NaN, which numpy writes for a value that is missing, as None."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


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
        yield Row(f"{dataset}, row {number}", _without_nan(values))
