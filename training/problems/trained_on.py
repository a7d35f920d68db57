"""Which problems an adapter was fitted to: a file of fingerprints beside its weights.

    write_trained_on(folder / TRAINED_ON, train=problems, heldout=heldout)
    tested = overlaps_of(problems, read_trained_on(folder))

The file holds each problem's id and hashes of its words, and no text: it may be published where the
problems may not. `training.evaluate` compares its own problems with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adapters.adapter import TRAINED_ON
from adapters.files import atomic_write
from adapters.first_line import first_line
from training.problems.overlap import Fingerprint
from training.problems.problem import Problem

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("used", pa.string(), nullable=False),  # "train", or "heldout": chose a checkpoint
        pa.field("whole", pa.uint64(), nullable=False),
        pa.field("runs", pa.list_(pa.field("item", pa.uint64(), nullable=False)), nullable=False),
    ]
)


def write_trained_on(path: Path, *, train: Iterable[Problem], heldout: Iterable[Problem]) -> None:
    """Write the fingerprints of the problems that made an adapter, and of those that chose it."""
    rows = [
        Fingerprint.of(problem)._asdict() | {"used": used}
        for used, problems in (("train", train), ("heldout", heldout))
        for problem in problems
    ]
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary, compression="zstd")


def read_trained_on(folder: Path) -> list[Fingerprint] | None:
    """The fingerprints in an adapter's folder; None: it has none.

    Raises:
        ValueError: the file is damaged, or another program wrote it.
    """
    path = folder / TRAINED_ON
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=_SCHEMA.names).cast(_SCHEMA)
        return [
            Fingerprint(row["id"], row["whole"], tuple(row["runs"])) for row in table.to_pylist()
        ]
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = first_line(error)[:200]
        raise ValueError(f"{path}: holds no fingerprints of problems ({reason})") from error
