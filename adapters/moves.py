"""Where an alias points, and where it has pointed: `moves.jsonl`, one JSON line a move.

The last whole line is the alias. A line is appended in one write under the name's lock, so a
reader needs none: it sees the old last line or the new one. What a killed writer or a full disk
leaves of a line has no end of line; readers pass over it and the next writer cuts it off.
"""

from __future__ import annotations

import errno
import getpass
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from adapters.files import fsync
from adapters.reference import Reference

FILE = "moves.jsonl"
LINE_LIMIT = 4096  # bytes; a reader of the last line looks at no more than two lines
HISTORY_LIMIT = 2**28  # bytes; a million moves and more

Action = Literal["publish", "alias", "rollback"]


def _version(text: str) -> str:
    return str(Reference.parse_version(text))


Version = Annotated[str, AfterValidator(_version)]


class Move(BaseModel):
    """One line: from now on the alias is `version`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Version
    before: Version | None = Field(alias="from", description="Where the alias pointed before.")
    action: Action
    at: datetime = Field(description="UTC.")
    by: str = Field(max_length=200, description="Who moved it: a person, a command, a key's name.")

    @classmethod
    def now(cls, version: Reference, before: Move | None, action: Action, by: str | None) -> Move:
        """The move to make, stamped with this moment."""
        return cls(
            version=str(version),
            before=before.version if before else None,
            action=action,
            at=datetime.now(UTC),
            by=whoami() if by is None else by,
        )


class DamagedHistoryError(ValueError):
    """A whole line that is no move: somebody's editor, or the disk."""


def whoami() -> str:
    """user@host, as far as this machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        user = str(os.getuid())
    text = f"{user}@{socket.gethostname()}"[:200]
    return text.encode(errors="replace").decode()


def read_last(folder: Path) -> Move | None:
    """The last move of the alias in `folder`; None where there is none yet.

    Raises:
        DamagedHistoryError: the last whole line is no move.
        OSError: the file is there but cannot be read, or is a link.
    """
    try:
        fd = os.open(folder / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe, too
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - 2 * LINE_LIMIT)
        tail = os.pread(fd, size - start, start)
    finally:
        os.close(fd)
    lines = tail.split(b"\n")[:-1]  # what follows the last end of line is no line
    if not lines:
        if start:
            raise DamagedHistoryError(f"{FILE}: its last line is over {LINE_LIMIT} bytes")
        return None
    return _parse(lines[-1], "the last line")


def read_all(folder: Path) -> list[Move]:
    """Every move, oldest first.

    Raises:
        DamagedHistoryError: a whole line is no move.
        OSError: as `read_last`.
    """
    try:
        fd = os.open(folder / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe, too
    except FileNotFoundError:
        return []
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > HISTORY_LIMIT:
            raise DamagedHistoryError(f"{FILE} is larger than {HISTORY_LIMIT} bytes")
        return parse_lines(file.read(HISTORY_LIMIT))


def parse_lines(content: bytes) -> list[Move]:
    """The moves of a history; what follows the last end of line is none.

    Raises:
        DamagedHistoryError: a whole line is no move.
    """
    lines = content.split(b"\n")[:-1]
    return [_parse(line, f"line {number}") for number, line in enumerate(lines, 1)]


def _parse(line: bytes, where: str) -> Move:
    try:
        return Move.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise DamagedHistoryError(f"{FILE}: {where}: {field}: {first['msg']}") from error


def append(folder: Path, move: Move) -> None:
    """Put `move` behind the others and on the disk. The caller holds the name's lock.

    Raises:
        OSError: it could not be written; the alias is where it was.
    """
    line = move.model_dump_json(by_alias=True).encode() + b"\n"
    assert len(line) <= LINE_LIMIT
    path = folder / FILE
    new = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o666)
    try:
        if new:
            fsync(folder)  # before the line: what comes after it could only fail too late
        end = _end_of_lines(fd)
        if os.fstat(fd).st_size > end:
            os.ftruncate(fd, end)
        try:
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
    finally:
        os.close(fd)


def _end_of_lines(fd: int) -> int:
    """Where the last whole line ends, in bytes from the start."""
    size = os.fstat(fd).st_size
    start = max(0, size - 2 * LINE_LIMIT)
    tail = os.pread(fd, size - start, start)
    if start and b"\n" not in tail:
        raise DamagedHistoryError(f"{FILE}: its last line is over {LINE_LIMIT} bytes")
    return start + tail.rfind(b"\n") + 1


def path_back(moves: Sequence[Move]) -> list[str]:
    """The versions that rolling back leads through, the present one last.

    A move forward adds one, a roll-back takes one away: after A, B, C, back, D it is A, B, D.
    """
    path: list[str] = []
    for move in moves:
        if move.action == "rollback":
            del path[-1:]
        if path[-1:] != [move.version]:
            path.append(move.version)
    return path
