"""Versions in a bucket: their files, and the record that says that all of them are there.

The record is written last and only where there is none, so whatever kills a publisher leaves files
that nobody reads. It holds what a listing needs: configuration, manifest and the header of the
weights. So a thousand adapters are listed without one of their weights. A download goes into a
temporary folder, is compared with the record's hashes and with the version's own, and is renamed
into the cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.adapter import ALONGSIDE, CONFIG, FILES, ORIGIN, WEIGHTS, AdapterError, AdapterVersion
from adapters.bucket.objects import Entry, Etag, Objects
from adapters.files import fsync, remove_tree, sha256_file, write_blocks
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import Sha256, is_name
from adapters.reference import Reference, is_hash
from adapters.safetensors_file import HEADER_LIMIT
from adapters.store import BUILDING, Store

PART = 16 * 2**20  # bytes of one request
LIMITS = {**FILES, **ALONGSIDE, ORIGIN: 2**20}
WHOLE = (CONFIG, MANIFEST)  # files that a record holds
LISTED = ".listed"  # inside a name's folder of the cache: versions with weights of a header alone
RECORDS, CONTENT = "records", "files"


class File(BaseModel):
    """A file of a version."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    size: int = Field(ge=0)
    sha256: Sha256
    start: bytes = Field(b"", description="Its first bytes, as far as a listing needs them.")


class Record(BaseModel):
    """That a version is there, and what of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    files: dict[Annotated[str, Field(max_length=64)], File]
    collecting: bool = Field(False, description="Garbage collection is about to delete it.")

    def content(self) -> bytes:
        """As it lies in the bucket."""
        return self.model_dump_json().encode()


class Known(NamedTuple):
    """A record, and what replaces it and nothing newer."""

    record: Record
    etag: Etag


class Versions:
    """The versions of a store.

    Args:
        here: the store that is this machine's cache.
    """

    def __init__(self, objects: Objects, here: Store) -> None:
        self._objects = objects
        self._here = here

    # ----------------------------------------------------------------------------------- reading

    def hashes(self, name: str = "") -> dict[str, list[str]]:
        """The versions in the bucket, of one name or of all, sorted. Raises AwayError."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for reference, _ in self.entries(name):
            found[reference.name].append(str(reference.hash))
        return {name: sorted(hashes) for name, hashes in found.items()}

    def entries(self, name: str = "") -> Iterator[tuple[Reference, Entry]]:
        """Every record. Raises AwayError."""
        for entry in self._objects.under(f"{RECORDS}/{name}" if name else RECORDS):
            owner, _, file = entry.key.removeprefix(f"{RECORDS}/").partition("/")
            digest = file.removesuffix(".json")
            if is_name(owner) and is_hash(digest):
                yield Reference(owner, digest), entry

    def record(self, reference: Reference) -> Known | None:
        """The record of a version as it is now; None where there is no such version.

        Raises:
            AdapterError: it is damaged.
            AwayError: the storage cannot be reached.
        """
        found = self._objects.get(record_key(reference))
        if found is None:
            return None
        try:
            record = Record.model_validate_json(found.content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "content"
            raise AdapterError(str(reference), f"its record: {field}: {first['msg']}") from error
        for file, facts in record.files.items():
            if file not in LIMITS or facts.size > LIMITS[file]:
                raise AdapterError(str(reference), f"its record names {file[:64]!a}, or too much")
        return Known(record, found.etag)

    def fetch(self, reference: Reference, record: Record) -> Path:
        """Download a version into the cache, where it is not there.

        Raises:
            AdapterError: what was downloaded is not what the version's name says.
            AwayError: the storage cannot be reached.
            OSError: the cache cannot be written.
        """
        place = self._here.path(reference)
        if place.is_dir():
            return place
        with self._building(reference) as building:
            digest = ""
            for file, facts in record.files.items():
                found = self._download(reference, file, facts, building / file)
                digest = found if file == WEIGHTS else digest
            version = AdapterVersion.read(building.path, reference.name, weights=digest)
            if version.hash != reference.hash:
                raise AdapterError(
                    str(reference), f"its content in the bucket is another one ({version.hash})"
                )
            building.rename_to(place)
        return place

    def listed(self, reference: Reference, record: Record) -> Path:
        """A folder with all of a version that a listing reads: its weights are a header and holes.

        Raises:
            OSError: the cache cannot be written.
        """
        place = self.listed_path(reference)
        if place.is_dir():
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._building(reference) as building:
            # Not put on the disk one by one: `is_damaged` sees what a power cut leaves.
            for file, facts in record.files.items():
                if facts.start:
                    (building / file).write_bytes(facts.start)
                    os.truncate(building / file, facts.size)
            building.rename_to(place)
        return place

    def is_damaged(self, record: Record, folder: Path, whole: bool) -> bool:
        """Whether files of the cache are not those of the record; `whole`: their last bytes too."""
        for file, facts in record.files.items():
            path = folder / file
            if not whole and not facts.start:
                continue
            if not path.is_file() or path.stat().st_size != facts.size:
                return True
            if whole and sha256_file(path) != facts.sha256:
                return True
            with path.open("rb") as opened:
                if opened.read(len(facts.start)) != facts.start:
                    return True
        return False

    def listed_path(self, reference: Reference) -> Path:
        """Where `listed` puts it."""
        return self._here.root / reference.name / LISTED / str(reference.hash)

    def _building(self, reference: Reference) -> _Building:
        """Swept by nobody: the sweep of the cache leaves what is an hour young (cache.py)."""
        home = self._here.root / reference.name
        return _Building(home / f"{BUILDING}{secrets.token_hex(6)}")

    def _download(self, reference: Reference, file: str, facts: File, target: Path) -> str:
        digest = hashlib.sha256()
        key = f"{files_prefix(reference)}/{file}"

        def blocks() -> Iterator[bytes]:
            known = facts.start if len(facts.start) == facts.size else b""
            for start in range(0, facts.size, PART):
                block = known or self._objects.part(key, start, min(PART, facts.size - start))
                digest.update(block)
                yield block

        try:
            write_blocks(target, blocks())
        except FileNotFoundError as error:
            raise AdapterError(str(reference), f"{file} is gone from the bucket") from error
        if digest.hexdigest() != facts.sha256:
            raise AdapterError(
                str(reference), f"{file} in the bucket is damaged (hash differs); publish it again"
            )
        return digest.hexdigest()

    # ----------------------------------------------------------------------------------- writing

    def upload(self, reference: Reference, folder: Path) -> Record:
        """Write the files of a version; nobody sees it until its record is written.

        Raises:
            AwayError: the storage cannot be reached.
            OSError: the folder cannot be read.
        """
        files = {}
        for file in LIMITS:
            if (folder / file).is_file():
                self._objects.put(f"{files_prefix(reference)}/{file}", folder / file)
                files[file] = _facts(folder / file)
        return Record(files=files)

    def write(self, reference: Reference, record: Record, was: Etag | None = None) -> None:
        """Write the record, if it is still the one that `was` names; None: if there is none.

        Raises:
            ConflictError: it is not.
            AwayError: the storage cannot be reached.
        """
        self._objects.replace(record_key(reference), record.content(), was)


class _Building:
    """Context manager: a new folder that is renamed into place, or removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Building:
        self.path.mkdir(parents=True)
        return self

    def __truediv__(self, file: str) -> Path:
        return self.path / file

    def __exit__(self, *_: object) -> None:
        remove_tree(self.path)

    def rename_to(self, place: Path) -> None:
        """Put it in place, unless another process was faster."""
        fsync(self.path)
        try:
            os.rename(self.path, place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        fsync(place.parent)


def record_key(reference: Reference) -> str:
    """Of a version's record."""
    return f"{RECORDS}/{reference.name}/{reference.hash}.json"


def files_prefix(reference: Reference) -> str:
    """Of a version's files."""
    return f"{CONTENT}/{reference.name}/{reference.hash}"


def _facts(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = b""
        if path.name in WHOLE:
            start = file.read()
        elif path.name == WEIGHTS:
            length = file.read(8)
            start = length + file.read(min(int.from_bytes(length, "little"), HEADER_LIMIT))
    return File(size=path.stat().st_size, sha256=digest, start=start)
