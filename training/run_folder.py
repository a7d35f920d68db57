"""The run folder: where stages leave their results, so that a killed run goes on where it stopped.

Each result's file name carries a digest of every setting that it and the stages before it depend
on. The same command finds the finished files and skips them; a changed learning rate keeps the
rollouts and trains anew; nothing is ever overwritten by a run with other settings.

One process at a time writes there: two would take each other's parts for their own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adapters.files import atomic_write, write_json

SCRATCH = "-base-cache"  # in the names of folders that are of use to a running process alone


def clear_scratch(folder: Path) -> None:
    """Remove what killed runs left in a run folder that this process holds.

    A run that goes on with other settings has other names, and would never come upon it.
    """
    for left in folder.glob(f"*{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def held(folder: Path, field: str) -> Iterator[None]:
    """Be the only process that writes into `folder`, which is made if it is not there.

    The lock goes with its process, so that a killed run resumes at once. Where the file system has
    no locks, nothing is held.

    Args:
        field: the setting that names the folder, for the message.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"{field}: {folder} cannot be written ({error.strerror}); name another folder"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise ValueError(
                    f"{field}: another run writes into {folder}; wait until it ends, or name "
                    "another folder"
                ) from None
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Stage:
    """One stage's place in the run folder; `then` makes the next one's."""

    folder: Path
    name: str
    digest: str

    @classmethod
    def first(cls, folder: Path, name: str, settings: dict[str, Any]) -> Stage:
        """A stage that depends on `settings` alone."""
        return cls(folder, name, _digest("", settings))

    def then(self, name: str, settings: dict[str, Any]) -> Stage:
        """The stage after this one: it depends on all that this one depends on, and `settings`."""
        return Stage(self.folder, name, _digest(self.digest, settings))

    def path(self, suffix: str = "") -> Path:
        """The stage's file or folder, FOLDER/NAME-DIGEST + `suffix`."""
        return self.folder / f"{self.name}-{self.digest}{suffix}"

    @property
    def scratch(self) -> Path:
        """A folder for what the stage needs while it runs; the next run removes what is left."""
        return self.path(SCRATCH)


def _digest(before: str, settings: dict[str, Any]) -> str:
    text = before + json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as a Parquet file, whole or not at all."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


class Parts:
    """A growing table: a folder of Parquet parts, each whole or absent.

    Rows are gathered and written `flush_rows` at a time, or after `flush_seconds`, so that a kill
    loses little and a long job keeps no result in memory.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        flush_rows: int = 2000,
        flush_seconds: float = 60.0,
    ) -> None:
        self.folder, self.schema = folder, schema
        self.flush_rows, self.flush_seconds = flush_rows, flush_seconds
        self._flushed = time.monotonic()
        self._rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read all rows written so far, by this process and earlier ones."""
        tables = [pq.read_table(path, columns=columns) for path in self._paths()]
        if not tables:
            return self.schema.empty_table().select(columns or self.schema.names)
        return pa.concat_tables(tables)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows that belong together: they land in one part."""
        self._rows.extend(rows)
        due = time.monotonic() - self._flushed >= self.flush_seconds
        if due or len(self._rows) >= self.flush_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were gathered as a part of their own."""
        if self._rows:
            path = self.folder / f"part-{len(self._paths()):05d}.parquet"
            write_table(path, pa.Table.from_pylist(self._rows, schema=self.schema))
            self._rows = []
        self._flushed = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether `finish` was called, by this process or an earlier one."""
        return (self.folder / "complete").exists()

    def finish(self) -> None:
        """Write what is left and mark the table complete."""
        self.flush()
        with atomic_write(self.folder / "complete"):
            pass


class Clock:
    """Measures how long each stage takes, and keeps the figures in a file of the run folder.

    A stage that an earlier process has finished keeps the figure of then.

    Args:
        path: the file, JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, stage: Stage) -> Iterator[None]:
        """Within, the time counts as that of the stage `name`."""
        start = time.perf_counter()
        yield
        key = f"{name}-{stage.digest}"
        self.known.setdefault(key, round(time.perf_counter() - start, 2))
        self.seconds[name] = self.known[key]
        write_json(self.path, self.known)

    def summary(self) -> str:
        """Every stage's seconds and their sum, as one line."""
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        return f"{stages}; together {sum(self.seconds.values()):.0f}"
