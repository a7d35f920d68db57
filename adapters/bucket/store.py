"""A store in a bucket: `Store`, whose aliases, versions and leases are objects.

What it means is written once, in adapters/store.py; here is where it differs. Aliases are looked up
in the last look at the index, so no request waits for the network: a server looks each second
(serving/follower.py), a command when it opens the store. Versions are built and read in a folder of
this machine, which is a cache. While the storage is away, what the cache has can be used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.adapter import AdapterError, AdapterVersion, Origin
from adapters.base_checkpoint import BaseCheckpoint
from adapters.bucket.cache import Cache
from adapters.bucket.index import Index
from adapters.bucket.leases import BucketLease, Leases
from adapters.bucket.objects import AwayError, ConflictError, Objects
from adapters.bucket.versions import Record, Versions
from adapters.lease import Lease
from adapters.manifest import is_name
from adapters.moves import DamagedHistoryError, Move
from adapters.reference import Reference
from adapters.store import Leased, Plain, Store, StoreAwayError, StoreError

FRESH = 5.0  # seconds for which the list of all versions is believed
AT_ONCE = 16  # records that are fetched at a time
_TRIES = 100


class BucketStore(Store):
    """The adapters under one URL.

    Args:
        objects: those under the URL.
        folder: the cache on this machine.
        limit: of the cache, bytes.
    """

    def __init__(self, objects: Objects, folder: Path, limit: int) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        here = Store(folder)
        self.objects = objects
        self.cache = Cache(here, limit)
        self.index = Index(objects, folder)
        self.all_versions = Versions(objects, here)
        self.leases = Leases(objects)
        self._hashes: tuple[float, dict[str, list[str]]] = (-FRESH, {})
        self._fetching = threading.Lock()

    @property
    def place(self) -> str:
        """The URL."""
        return self.objects.place

    def exists(self) -> bool:
        """A bucket that holds nothing yet is an empty store."""
        return True

    def reachable(self) -> bool:
        """A bucket that is away raises errors, and looks like nothing else."""
        return True

    def refresh(self) -> None:
        """Look where the aliases point: one conditional read.

        Raises:
            AwayError, DamagedHistoryError: as the index says.
        """
        self.index.refresh()

    @property
    def calls(self) -> Mapping[str, int]:
        """Requests to the bucket so far, by kind."""
        return self.objects.calls

    # ------------------------------------------------------------------------------ what is there

    def folders(self) -> list[str]:
        """Every name of an alias, and those that have versions alone."""
        with suppress(AwayError):
            return sorted({*self.index.aliases, *self._all_hashes()})
        return self.names()

    def names(self) -> list[str]:
        """Every alias, as of the last look."""
        return sorted(self.index.aliases)

    def versions(self, name: str) -> list[str]:
        """The hashes of the versions of `name`; of those on this machine if the bucket is away."""
        if not is_name(name):
            return []
        try:
            return self._all_hashes().get(name, [])
        except AwayError:
            return self.cache.here.versions(name)

    def _all_hashes(self) -> dict[str, list[str]]:
        asked, found = self._hashes
        if time.monotonic() - asked >= FRESH:
            start = time.monotonic()
            self.index.check_near()
            found = self.all_versions.hashes()
            self._hashes = start, found
        return found

    def forget_hashes(self) -> None:
        """Look at the bucket when the versions are asked for next."""
        self._hashes = -FRESH, {}

    def history(self, name: str) -> list[Move]:
        """Every move of the alias `name`, oldest first; looks at the bucket.

        Raises:
            KeyError: there is nothing of that name.
            AdapterError: the history is damaged, or cannot be read now.
        """
        with self._reading(name):
            found = self.index.history(name)
        if not found and not self.versions(name):
            raise KeyError(name)
        return found

    def last_move(self, name: str) -> Move | None:
        """As of the last look."""
        return self.index.aliases.get(name)

    def resolve(self, reference: str) -> Reference:
        """The version that `reference` means, as of the last look.

        Raises:
            KeyError: there is nothing of that name.
            StoreAwayError: nobody knows now whether there is such a version.
        """
        try:
            asked = Reference.parse(reference)
        except ValueError:
            raise KeyError(reference) from None
        if asked.hash is None:
            last = self.last_move(asked.name)
            if last is None:
                raise KeyError(reference)
            return Reference.parse_version(last.version)
        here = (self.path(asked), self.all_versions.listed_path(asked))
        if any(folder.is_dir() for folder in here):
            return asked
        with self._reading(reference):
            self.index.check_near()
            known = self.all_versions.record(asked)
            if known is None or known.record.collecting:
                raise KeyError(reference)
            self.all_versions.listed(asked, known.record)
        return asked

    def identity(self, reference: Reference) -> int | None:  # noqa: ARG002
        """Content of a bucket never changes under a version's name."""
        return None

    def plain(self, name: str) -> Plain | None:  # noqa: ARG002
        """A bucket has no plain folders; they are published or imported."""
        return None

    def leftovers(self, name: str) -> list[str]:  # noqa: ARG002
        """Nothing lies beside the versions."""
        return []

    # ------------------------------------------------------------------------------------- to use

    def bring_records(self, names: list[str]) -> None:
        """Fetch what a listing of `names` needs, many at a time; what fails is told by `get`."""
        moves = [self.last_move(name) for name in names]
        wanted = [Reference.parse_version(move.version) for move in moves if move is not None]
        missing = [one for one in wanted if not self._listed_here(one)]
        if missing:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._try_to_list, missing))

    def _listed_here(self, reference: Reference) -> Path | None:
        for folder in (self.path(reference), self.all_versions.listed_path(reference)):
            if folder.is_dir():
                return folder
        return None

    def _try_to_list(self, reference: Reference) -> None:
        with suppress(AdapterError, OSError):
            self._list(reference)

    def _list(self, reference: Reference) -> Path:
        self.index.check_near()
        known = self.all_versions.record(reference)
        if known is None:
            return self.path(reference)  # which is not there
        return self.all_versions.listed(reference, known.record)

    def _files(self, reference: Reference, hashes: bool) -> Path:
        if not hashes:
            return self._listed_here(reference) or self._list(reference)
        if not self.path(reference).is_dir():
            self.index.check_near()
            known = self.all_versions.record(reference)
            if known is not None:
                self._fetch(reference, known.record)
        return self.path(reference)

    def _fetch(self, reference: Reference, record: Record) -> None:
        """Have the version in the cache. Raises AwayError, AdapterError, OSError."""
        with self._fetching:
            if self.path(reference).is_dir():
                return
            lease = Lease.take(self.all_versions.fetch(reference, record))
            if lease is not None:
                with lease, suppress(OSError):  # not this one: it is about to be used
                    self.cache.shrink()

    def _read(
        self,
        found: Reference,
        reference: str,
        base: BaseCheckpoint | None,
        max_rank: int | None,
        hashes: bool,
    ) -> AdapterVersion:
        with self._reading(reference):
            try:
                return super()._read(found, reference, base, max_rank, hashes)
            except StoreError:
                raise
            except AdapterError:
                if not self._mended(found, hashes):
                    raise
            return super()._read(found, reference, base, max_rank, hashes)

    def _mended(self, reference: Reference, hashes: bool) -> bool:
        """Whether the cache held something else than the bucket, and does no longer."""
        folder = self.path(reference) if hashes else self._listed_here(reference)
        if folder is None or not folder.is_dir():
            return False
        known = self.all_versions.record(reference)
        if known is None or not self.all_versions.is_damaged(known.record, folder, hashes):
            return False
        self.cache.discard(folder)
        return True

    def lease(self, reference: str) -> Leased:
        """Hold what `reference` means, in the bucket and in the cache, where it is afterwards.

        While the storage is away, a version in the cache is held there alone.

        Raises:
            KeyError: there is nothing of that name.
            AdapterError: the version is gone, or damaged.
            StoreAwayError: it is not in the cache, and the storage is away.
        """
        for _ in range(_TRIES):
            found = self.resolve(reference)
            with self._reading(reference):
                lease = self._held(found)
            if lease is not None:
                return Leased(found, self.path(found), lease)
            if "@" in reference:
                raise KeyError(reference)
            with self._reading(reference):
                if not self.index.refresh():
                    break
        raise AdapterError(reference, f"its version {found} is gone; move the alias, or verify")

    def _held(self, reference: Reference) -> Lease | None:
        """A lease of the version; None: it has been collected, or is just being so."""
        self.leases.count(reference)
        try:
            here = self._held_here(reference)
        except BaseException:
            self.leases.release(reference)
            raise
        if here is None:
            self.leases.release(reference)
            return None
        self.cache.used(reference)
        return BucketLease(here, self.leases, reference)

    def _held_here(self, reference: Reference) -> Lease | None:
        """A lease of the version in the cache, where the bucket has it; None: it does not."""
        try:
            self.index.check_near()
            self.leases.write(reference)
            while True:
                known = self.all_versions.record(reference)
                if known is None or known.record.collecting:
                    return None
                self._fetch(reference, known.record)
                here = Lease.take(self.path(reference))
                if here is not None:  # else it went for another version's sake
                    return here
        except AwayError:
            here = Lease.take(self.path(reference)) if self.path(reference).is_dir() else None
            if here is None:
                raise
            return here

    # ----------------------------------------------------------------------------------- to write

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:  # noqa: ARG002
        """Nobody waits: a move that comes too late is made again. It starts from a fresh look."""
        self.index.refresh()
        yield

    def rollback(self, name: str, *, by: str | None = None, trusted: str | None = None) -> Move:
        """As a folder does, from a fresh look: the alias may be younger than the last one."""
        with self.writes(name):
            self.index.refresh()
        return super().rollback(name, by=by, trusted=trusted)

    def _append(self, name: str, move: Move, after: Move | None) -> None:
        self.index.move(name, move, after)

    def _build(
        self,
        source: Path,
        name: str,
        base: BaseCheckpoint | None,
        origin: Origin | None = None,
    ) -> tuple[AdapterVersion, Lease]:
        """Build the version in the cache, as a folder does, and upload it."""
        built = self.cache.here.publish(source, name, base=base, alias=False, origin=origin)
        reference = Reference(name, built.hash)
        here = self.cache.here.lease(str(reference)).lease
        self.leases.count(reference)
        lease = BucketLease(here, self.leases, reference)
        try:
            self.leases.write(reference)
            self._upload(reference)
            self.forget_hashes()
            self.cache.shrink()
        except BaseException:
            lease.close()
            raise
        return built, lease

    def _upload(self, reference: Reference) -> None:
        """Have the version in the bucket, and as young as any for the garbage collection."""
        known = self.all_versions.record(reference)
        if known is not None and known.record.collecting:
            raise StoreError(
                reference.name, f"{reference} is just being collected; publish it again in a minute"
            )
        record = (
            known.record if known else self.all_versions.upload(reference, self.path(reference))
        )
        try:
            self.all_versions.write(reference, record, known.etag if known else None)
        except ConflictError:
            now = self.all_versions.record(reference)
            if now is None or now.record.collecting:
                raise StoreError(
                    reference.name, f"{reference} is just being collected; publish it again"
                ) from None

    # ------------------------------------------------------------------------------ the small print

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except DamagedHistoryError as error:
            raise AdapterError(name, str(error)) from error
        except AwayError as error:
            raise StoreAwayError(name, f"{self.place} is out of reach: {error}") from error

    @contextmanager
    def writes(self, name: str) -> Iterator[None]:
        """Say in the store's words why `name` could not be written."""
        try:
            yield
        except DamagedHistoryError as error:
            raise AdapterError(name, str(error)) from error
        except AwayError as error:
            raise StoreAwayError(name, f"{self.place} cannot be written: {error}") from error
        except OSError as error:
            raise StoreError(
                name, f"the cache {self.root} cannot be written: {error.strerror or error}"
            ) from error
