"""Garbage collection in a bucket; what stays is as in adapters/collect.py.

A version is marked in its record first. Whoever wants to use one names it in a lease and then reads
the record; so once the mark is written, either the user sees it, or the lease is seen here. Leases
and aliases are read once more after the mark: what one of them names is unmarked, the rest is
deleted, files first and the record last. A kill leaves marks, which the next collection takes up.
Files that a killed publisher left have no record; they are given one that is marked.
Ages and leases are told by the storage's clock alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime

from adapters.adapter import AdapterError
from adapters.bucket.objects import AwayError, ConflictError
from adapters.bucket.store import AT_ONCE, BucketStore
from adapters.bucket.versions import CONTENT, Record, files_prefix, record_key
from adapters.manifest import is_name
from adapters.needed import wanted
from adapters.reference import Reference, is_hash
from adapters.store import StoreError

LOCK = "collecting.json"
LONGEST = 1800.0  # seconds, after which a collection is taken for dead
UNFINISHED = 86400.0  # seconds after which files without a record are nobody's


def collect(store: BucketStore, keep: int, grace: float, dry_run: bool) -> list[Reference]:
    """Delete what nobody needs. Arguments and result as in adapters/collect.py.

    Raises:
        AdapterError: an alias or a lease cannot be read; then nothing is taken.
        StoreError: another collection runs, or the storage cannot be reached.
    """
    with store.writes("gc"):
        now = store.objects.now()
        if dry_run:
            return _look(store, keep, grace, now)[1]
        with _alone(store, now):
            return _collect(store, keep, grace, now)


def _collect(store: BucketStore, keep: int, grace: float, now: datetime) -> list[Reference]:
    needed, candidates = _look(store, keep, grace, now)
    _unmark_needed(store, needed)  # what a killed collection has left marked
    marked = [reference for reference in candidates if _mark(store, reference)]
    # From here on nobody begins to use a marked one; some may have done so before.
    needed = _needed(store, keep, store.objects.now()) if marked else set()
    gone = []
    for reference in marked:
        if reference in needed:
            _unmark(store, reference)
            continue
        _delete(store, reference)
        gone.append(reference)
    _sweep(store, now)
    store.forget_hashes()
    return gone


def _needed(store: BucketStore, keep: int, now: datetime) -> set[Reference]:
    """What aliases need and leases name, as of now."""
    store.index.refresh()
    try:
        held = store.leases.everybodys(now)
    except ValueError as error:
        raise StoreError("gc", f"nothing was taken: {error}") from error
    return wanted(store, keep) | set(map(Reference.parse_version, held))


def _look(
    store: BucketStore, keep: int, grace: float, now: datetime
) -> tuple[set[Reference], list[Reference]]:
    """The versions that are needed, and those that may go."""
    # The records first: what is published meanwhile is none of them.
    entries = list(store.all_versions.entries())
    needed = _needed(store, keep, now)
    return needed, [
        reference
        for reference, entry in entries
        if reference not in needed
        and ((now - entry.modified).total_seconds() >= grace or _is_marked(store, reference))
    ]


def _is_marked(store: BucketStore, reference: Reference) -> bool:
    known = store.all_versions.record(reference)
    return known is not None and known.record.collecting


def _mark(store: BucketStore, reference: Reference) -> bool:
    """Whether its record says now that it is being collected."""
    known = store.all_versions.record(reference)
    if known is None:
        return False
    if not known.record.collecting:
        marked = known.record.model_copy(update={"collecting": True})
        try:
            store.all_versions.write(reference, marked, known.etag)
        except ConflictError:  # published once more
            return _is_marked(store, reference)
    return True


def _unmark(store: BucketStore, reference: Reference) -> None:
    known = store.all_versions.record(reference)
    if known is not None and known.record.collecting:
        with suppress(ConflictError):
            kept = known.record.model_copy(update={"collecting": False})
            store.all_versions.write(reference, kept, known.etag)


def _unmark_needed(store: BucketStore, needed: set[Reference]) -> None:
    def unmark(reference: Reference) -> None:
        with suppress(AdapterError):  # a damaged record: `verify` names it
            _unmark(store, reference)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(unmark, needed))


def _sweep(store: BucketStore, now: datetime) -> None:
    """Delete what killed publishers have left, and leases that ran out long ago."""
    store.leases.sweep(now)
    marked = [
        reference for reference in _unfinished(store, now) if _mark_unfinished(store, reference)
    ]
    # Whoever publishes one of them now sees the mark, or is seen by the lease they took before.
    held = store.leases.everybodys(store.objects.now()) if marked else set()
    for reference in marked:
        if str(reference) in held:
            store.objects.delete([record_key(reference)])
        else:
            _delete(store, reference)


def _unfinished(store: BucketStore, now: datetime) -> set[Reference]:
    """Versions with files that are a day old, and no record."""
    old = set()
    for entry in store.objects.under(CONTENT):
        parts = entry.key.removeprefix(f"{CONTENT}/").split("/")
        ours = len(parts) == 3 and is_name(parts[0]) and is_hash(parts[1])
        if ours and (now - entry.modified).total_seconds() > UNFINISHED:
            old.add(Reference(parts[0], parts[1]))
    return old - {reference for reference, _ in store.all_versions.entries()} if old else old


def _mark_unfinished(store: BucketStore, reference: Reference) -> bool:
    """Give it a record that is collected; False: somebody has just published it."""
    try:
        store.all_versions.write(reference, Record(files={}, collecting=True))
    except ConflictError:
        return False
    return True


def _delete(store: BucketStore, reference: Reference) -> None:
    """The files first, and the record last: a kill leaves the mark."""
    store.objects.delete([entry.key for entry in store.objects.under(files_prefix(reference))])
    store.objects.delete([record_key(reference)])


@contextmanager
def _alone(store: BucketStore, now: datetime) -> Iterator[None]:
    """Be the only collection; one that died half an hour ago is passed over."""
    found = store.objects.get(LOCK)
    if found is not None and (now - found.modified).total_seconds() < LONGEST:
        raise StoreError("gc", f"another collection of {store.place} runs; {LOCK} says since when")
    try:
        store.objects.replace(LOCK, str(now).encode(), found.etag if found else None)
    except ConflictError:
        raise StoreError("gc", f"another collection of {store.place} has just begun") from None
    try:
        yield
    finally:
        with suppress(AwayError):
            store.objects.delete([LOCK])
