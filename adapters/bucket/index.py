"""Where every alias points: `index.json`, one small object that replicas poll.

It holds the last move of each alias. A writer replaces it only as it has read it, so of two that
race one wins, and the other looks again. Before it does, it puts the move that it supersedes into
the alias's history: the history is that object's lines and the index's move, which may be its last
line already. So a writer may be killed anywhere.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from adapters.bucket.objects import AwayError, ConflictError, Etag, Objects, UnchangedError
from adapters.files import atomic_write
from adapters.manifest import NAME_PATTERN
from adapters.moves import HISTORY_LIMIT, DamagedHistoryError, Move, parse_lines
from adapters.store import MovedMeanwhileError

INDEX = "index.json"
KEPT = ".index.json"  # the copy on this machine
BELIEVED = 3.0  # seconds for which a storage that was away is taken to be so
_TRIES = 50


class Content(BaseModel):
    """The whole of `index.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    aliases: dict[Annotated[str, StringConstraints(pattern=NAME_PATTERN)], Move] = Field({})


class Index:
    """The aliases of a store, as of the last look; from any thread.

    Args:
        kept: folder for a copy, from which a server starts where the storage is away.
    """

    def __init__(self, objects: Objects, kept: Path) -> None:
        self._objects = objects
        self._kept = kept / KEPT
        self._etag: Etag | None = None
        self._lock = threading.RLock()  # what is known and its etag belong together
        self.aliases: dict[str, Move] = {}
        self._failed: tuple[float, AwayError] | None = None  # the last look, and when
        with suppress(OSError, ValueError):
            self.aliases = Content.model_validate_json(self._kept.read_bytes()).aliases

    def refresh(self) -> bool:
        """Look at the storage; whether anything has changed.

        Raises:
            AwayError: it cannot be reached.
            DamagedHistoryError: the object is no index, or is gone.
        """
        with self._lock:
            try:
                changed = self._refresh()
            except AwayError as error:
                self._failed = time.monotonic(), error
                raise
            self._failed = None
            return changed

    def check_near(self) -> None:
        """Raise AwayError at once where a look has just found the storage away.

        A thousand questions then take no thousand timeouts.
        """
        failed = self._failed
        if failed is not None and time.monotonic() - failed[0] < BELIEVED:
            raise failed[1]

    def _refresh(self) -> bool:
        try:
            found = self._objects.get(INDEX, unless=self._etag)
        except UnchangedError:
            return False
        if found is None:
            if self._etag is not None:
                raise DamagedHistoryError(f"{INDEX} is gone; restore it from an older version")
            changed, self.aliases = bool(self.aliases), {}
            return changed
        try:
            content = Content.model_validate_json(found.content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "content"
            raise DamagedHistoryError(f"{INDEX}: {field}: {first['msg']}") from error
        self.aliases, self._etag = content.aliases, found.etag
        self._keep(found.content)
        return True

    def _keep(self, content: bytes) -> None:
        with suppress(OSError), atomic_write(self._kept) as temporary:  # a full disk is no news
            temporary.write_bytes(content)

    def history(self, name: str) -> list[Move]:
        """Every move of the alias, oldest first; looks at the storage.

        Raises:
            AwayError, DamagedHistoryError: it cannot be read.
        """
        self.refresh()
        last = self.aliases.get(name)
        return _with(self._lines(name)[0], last) if last else []

    def _lines(self, name: str) -> tuple[list[Move], Etag | None]:
        found = self._objects.get(_history(name))
        if found is None:
            return [], None
        if len(found.content) > HISTORY_LIMIT:
            raise DamagedHistoryError(f"{_history(name)} is larger than {HISTORY_LIMIT} bytes")
        return parse_lines(found.content), found.etag

    def move(self, name: str, move: Move, after: Move | None) -> None:
        """Have `move` follow `after`.

        Raises:
            MovedMeanwhileError: `after` is not the last move any more; nothing was done.
            AwayError: the storage cannot be reached. The text says so where the alias may have
                moved all the same.
        """
        for attempt in range(_TRIES):
            with self._lock, suppress(ConflictError):
                self.refresh()
                last = self.aliases.get(name)
                if last == move:
                    return  # written, and the answer was lost
                if last != after:
                    if attempt and move in self.history(name):
                        return  # so it was, and somebody has moved on
                    raise MovedMeanwhileError
                if last is not None:
                    self._write_down(name, last)
                self._replace(name, move)
                return
            time.sleep(random.uniform(0, 0.02 * (attempt + 1)))
        raise AwayError(f"{INDEX}: others write all the time; try again")

    def _replace(self, name: str, move: Move) -> None:
        content = Content(aliases=self.aliases | {name: move})
        written = content.model_dump_json(by_alias=True).encode()
        try:
            self._etag = self._objects.replace(INDEX, written, self._etag)
        except AwayError as error:
            with suppress(AwayError, DamagedHistoryError):
                self.refresh()
                if self.aliases.get(name) == move:
                    return
            raise AwayError(f"{error}; look whether it has moved (store show {name})") from error
        self.aliases = content.aliases
        self._keep(written)

    def _write_down(self, name: str, last: Move) -> None:
        """Append `last` to the history, unless somebody was faster, who may have moved on."""
        for _ in range(_TRIES):
            lines, etag = self._lines(name)
            if last in lines:
                return
            text = "".join(one.model_dump_json(by_alias=True) + "\n" for one in [*lines, last])
            with suppress(ConflictError):
                self._objects.replace(_history(name), text.encode(), etag)
                return
        raise AwayError(f"{_history(name)}: others write all the time; try again")


def _history(name: str) -> str:
    return f"history/{name}.jsonl"


def _with(lines: list[Move], last: Move) -> list[Move]:
    """The history up to `last`; somebody may have begun to supersede it."""
    return lines if lines[-1:] == [last] else [*lines, last]
