"""A PEFT folder in a bucket, downloaded for an import.

It is somebody else's folder, without records: the names and sizes of its files are all that is
believed of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from adapters.adapter import FILES
from adapters.bucket.objects import Entry, Objects
from adapters.bucket.versions import PART
from adapters.files import write_blocks
from adapters.peft_folder import INDEX, INDEX_LIMIT, SHARDS, WEIGHTS_LIMIT

LIMITS = {**FILES, INDEX: INDEX_LIMIT}


def download(url: str, folder: Path) -> None:
    """Write the files of the adapter at `url` into `folder`; others stay where they are.

    Args:
        url: as `places.parse_place` lets it through.

    Raises:
        ValueError: there is none, or a file of it is too large.
        AwayError: the storage cannot be reached.
    """
    objects = Objects.open(url)
    found = [entry for entry in objects.under("") if _is_wanted(entry.key)]
    if not found:
        raise ValueError(f"'{url}' holds no adapter")
    for entry in found:
        limit = LIMITS.get(entry.key, WEIGHTS_LIMIT)
        if entry.size > limit:
            raise ValueError(f"'{url}': {entry.key} is larger than {limit} bytes")
    for entry in found:
        write_blocks(folder / entry.key, _blocks(objects, entry), mode=0o644)


def _is_wanted(key: str) -> bool:
    return "/" not in key and (key in LIMITS or fnmatchcase(key, SHARDS))


def _blocks(objects: Objects, entry: Entry) -> Iterator[bytes]:
    for start in range(0, entry.size, PART):
        yield objects.part(entry.key, start, min(PART, entry.size - start))
