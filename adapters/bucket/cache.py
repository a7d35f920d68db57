"""The versions of a bucket on this machine: a folder of limited size, shared by its processes.

It is laid out as a store of its own, NAME/HASH, so a version is read there as in any store. The one
whose last use is longest ago goes first. One that a process has leased never goes, whatever the
limit: what is served stays.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from adapters.files import remove_tree
from adapters.lease import LEASE, Lease
from adapters.reference import Reference
from adapters.store import BUILDING, TRASH, Store

FORGOTTEN = 3600.0  # seconds after which what is half built is nobody's


class Cached(NamedTuple):
    """A version in the cache."""

    used: float  # last, seconds since 1970
    size: int  # bytes
    reference: Reference


class Cache:
    """A store's folder on this machine.

    Args:
        limit: bytes.
    """

    def __init__(self, here: Store, limit: int) -> None:
        self.here = here
        self.limit = limit

    def used(self, reference: Reference) -> None:
        """Remember that a version has just been used."""
        with suppress(OSError):
            os.utime(self.here.path(reference) / LEASE)

    def versions(self) -> Iterator[Cached]:
        """Every version here."""
        for name in self.here.folders():
            for digest in self.here.versions(name):
                reference = Reference(name, digest)
                with suppress(OSError):
                    yield _measured(self.here.path(reference), reference)

    def size(self) -> int:
        """Bytes that the versions take."""
        return sum(one.size for one in self.versions())

    def shrink(self) -> list[Reference]:
        """Delete what was used longest ago until the rest fits; what is leased stays.

        Raises:
            OSError: the folder cannot be written.
        """
        found = sorted(self.versions())
        size = sum(one.size for one in found)
        gone = []
        for one in found:
            if size <= self.limit:
                break
            if self._remove(one.reference):
                size -= one.size
                gone.append(one.reference)
        if gone:
            self._sweep()
        return gone

    def _remove(self, reference: Reference) -> bool:
        lease = Lease.take_alone(self.here.path(reference))
        if lease is None:
            return False
        with lease:
            self.discard(self.here.path(reference))
        return True

    def discard(self, path: Path) -> None:
        """Delete a version's folder, whoever uses it."""
        trash = path.with_name(f"{TRASH}{secrets.token_hex(6)}")
        with suppress(FileNotFoundError):
            os.rename(path, trash)
        remove_tree(trash)

    def _sweep(self) -> None:
        """Delete what killed processes have left."""
        for name in self.here.folders():
            for entry in (self.here.root / name).iterdir():
                if entry.name.startswith((BUILDING, TRASH)):
                    with suppress(OSError):
                        if time.time() - entry.stat().st_ctime > FORGOTTEN:
                            remove_tree(entry)


def _measured(path: Path, reference: Reference) -> Cached:
    files = [entry.stat(follow_symlinks=False) for entry in os.scandir(path)]
    lease = path / LEASE
    used = lease.stat().st_mtime if lease.exists() else path.stat().st_mtime
    return Cached(used, sum(one.st_size for one in files), reference)
