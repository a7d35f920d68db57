"""From where a controller may have adapters loaded: an allow-list, and nothing beside it.

    --controller-sources hf://org/,hf://other/math-lora,s3://bucket/adapters,/mnt/adapters/

    hf://org/math-lora      allowed, and the same as org/math-lora or huggingface://org/math-lora
    /mnt/adapters/math      allowed; /mnt/adapters-old/math is not: entries match whole components
    /mnt/adapters/../etc    refused, as is any '.', '..' or link on the way

A folder is not checked and then read: it is walked from the allowed one down, component by
component, by descriptors that follow no link. What is read is a copy, so nobody can exchange it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from adapters.adapter import FILES
from adapters.exchange import SourceError, opened
from adapters.model_card import HUB_ID
from adapters.peft_folder import INDEX, INDEX_LIMIT, SHARDS, WEIGHTS_LIMIT

HUB_SCHEMES = ("hf://", "huggingface://")
BUCKET_SCHEMES = ("s3", "gs", "az")
LIMITS = {**FILES, INDEX: INDEX_LIMIT, SHARDS: WEIGHTS_LIMIT}  # name or pattern -> bytes at most
_URL = re.compile(r"([a-z0-9]+)://(.*)", re.DOTALL)
_PART = re.compile(r"[A-Za-z0-9_][\w.@+=-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_BLOCK = 2**20


class ForbiddenSourceError(ValueError):
    """The allow-list does not have it, or it has a form that no allowed source has."""


class MissingSourceError(SourceError):
    """It is allowed, but there is no adapter."""


@dataclass(frozen=True)
class Place:
    """A source, or an entry of the allow-list: where it begins, and the way from there."""

    scheme: str  # hf, s3, gs, az or file
    parts: tuple[str, ...]
    revision: str | None = None  # of a repository of the hub

    def holds(self, other: Place) -> bool:
        """Whether `other` is this place or lies below it."""
        return self.scheme == other.scheme and other.parts[: len(self.parts)] == self.parts

    def __str__(self) -> str:
        head = "/" if self.scheme == "file" else f"{self.scheme}://"
        return head + "/".join(self.parts) + (f"@{self.revision}" if self.revision else "")

    @property
    def origin(self) -> str | None:
        """What a version's manifest tells of it; of a folder nobody else knows the place."""
        if self.scheme == "hf":
            return f"{'/'.join(self.parts)}@{self.revision or 'main'}"
        return None if self.scheme == "file" else str(self)

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that `text` names.

        Raises:
            ValueError: it is none; the message says what would be.
        """
        revision = None
        found = _URL.fullmatch(text)
        if text.startswith("/"):
            scheme, rest = "file", text[1:]
        elif text.startswith(HUB_SCHEMES) or (found is None and HUB_ID.fullmatch(text)):
            scheme, (rest, at, revision) = "hf", text.partition("://")[2].partition("@")
            rest = rest or text
            if at and not _REVISION.fullmatch(revision):
                raise ValueError(f"{text[:200]!r}: what follows '@' is no revision")
        elif found is not None and found[1] in BUCKET_SCHEMES:
            scheme, rest = found[1], found[2]
        else:
            raise ValueError(
                f"{text[:200]!r} is no source; write hf://OWNER/REPOSITORY, s3://BUCKET/PREFIX "
                "(or gs://, az://) or an absolute path"
            )
        parts = tuple(rest.removesuffix("/").split("/"))
        if not all(map(_PART.fullmatch, parts)):
            raise ValueError(
                f"{text[:200]!r}: each part between two '/' must be of letters, digits and "
                "_ . @ + = -, and must not begin with a dot"
            )
        if scheme == "hf" and len(parts) > 2:
            raise ValueError(f"{text[:200]!r}: a repository of the hub is OWNER/REPOSITORY")
        return cls(scheme, parts, revision or None)


@dataclass(frozen=True)
class Sources:
    """The allow-list."""

    places: tuple[Place, ...]

    @classmethod
    def parse(cls, text: str) -> Sources:
        """Read `--controller-sources`.

        Raises:
            ValueError: an entry is none; the message names it.
        """
        entries = [entry.strip() for entry in text.split(",")]
        places = tuple(Place.parse(entry) for entry in entries if entry)
        for place in places:
            if place.revision:
                raise ValueError(f"'{place}': an entry allows all revisions; leave '@...' out")
        return cls(places)

    def find(self, path: str) -> tuple[Place, Place]:
        """(entry, source): the source that `path` names, and the entry that allows it.

        Raises:
            ForbiddenSourceError: no entry does.
        """
        try:
            source = Place.parse(path)
        except ValueError as error:
            raise ForbiddenSourceError(f"lora_path: {error}") from error
        for entry in self.places:
            if entry.holds(source):
                return entry, source
        raise ForbiddenSourceError(
            f"lora_path: '{source}' is not below any source that --controller-sources allows"
        )

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """A folder with a copy of the adapter at `path`, for as long as this is open.

        Raises:
            ForbiddenSourceError: `path` is not allowed.
            SourceError: there is no adapter, or it cannot be fetched.
        """
        entry, source = self.find(path)
        if source.scheme == "hf":
            if len(source.parts) != 2:
                raise ForbiddenSourceError(f"lora_path: '{source}' names no repository")
            with opened("/".join(source.parts), source.revision, hub=True) as folder:
                yield folder
            return
        if source.scheme != "file":
            with opened(str(source)) as folder:
                yield folder
            return
        with tempfile.TemporaryDirectory(prefix="reasonmaxxer-") as copy:
            _copy_folder(entry, source, Path(copy))
            yield Path(copy)


def _limit(name: str) -> int | None:
    """Bytes that a file of an adapter may have; None: it is none of an adapter's."""
    return next((limit for one, limit in LIMITS.items() if fnmatchcase(name, one)), None)


# ------------------------------------------------------------------------------------- a folder


def _copy_folder(entry: Place, source: Place, target: Path) -> None:
    """Copy an adapter's files; `entry` is where links may lead to, and no further."""
    below = source.parts[len(entry.parts) :]
    try:
        folder = _open_below(str(entry), below)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingSourceError(f"lora_path: there is no folder '{source}'") from error
    except OSError as error:  # ELOOP: a link
        raise ForbiddenSourceError(
            f"lora_path: '{source}' cannot be opened without following a link ({error.strerror})"
        ) from error
    try:
        names = [name for name in os.listdir(folder) if _limit(name) is not None]
        if not names:
            raise MissingSourceError(f"lora_path: '{source}' holds no adapter")
        for name in names:
            _copy_file(folder, name, target / name, source)
    finally:
        os.close(folder)


def _open_below(root: str, parts: Sequence[str]) -> int:
    """A descriptor of the folder `parts` below `root`, without following a link below `root`."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except NotADirectoryError as error:
            mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
            raise
        finally:
            os.close(folder)
        folder = below
    return folder


def _copy_file(folder: int, name: str, target: Path, source: Place) -> None:
    limit = _limit(name) or 0
    try:
        # A pipe would block the one who opens it.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise ForbiddenSourceError(
            f"lora_path: '{source}': {name} is a link, or cannot be read ({error.strerror})"
        ) from error
    with open(fd, "rb") as file, target.open("xb") as copy:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise SourceError(f"lora_path: '{source}': {name} is no file of at most {limit} bytes")
        left = limit
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            copy.write(block)
            left -= len(block)
