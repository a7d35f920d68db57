"""Garbage collection: delete the versions that nobody can ask for by an alias, nor is using.

A version stays while

- an alias points at it, of whatever name, or would after one of its next `keep` roll-backs;
- somebody holds a lease of it: a server, an alias on its way to it, in any process;
- it is younger than `grace`: published, and perhaps about to be aliased.

The lease is what makes this safe without a lock on the whole store: whoever moves an alias holds
one of the target while it moves. So once a version is held alone and *then* no alias points at it,
none will. It is renamed first and deleted afterwards: a kill leaves a version whole or gone.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import ExitStack

from adapters import moves
from adapters.bucket.collect import collect as collect_in_bucket
from adapters.bucket.store import BucketStore
from adapters.files import fsync, remove_tree
from adapters.lease import Lease, writing
from adapters.needed import own_folders, wanted
from adapters.reference import Reference
from adapters.store import BUILDING, TRASH, Store

GRACE = 3600.0  # seconds


def collect(
    store: Store, keep: int = 1, grace: float = GRACE, dry_run: bool = False
) -> list[Reference]:
    """Delete what nobody needs, and what killed writers have left behind.

    Args:
        keep: roll-backs that stay possible, for each alias.
        grace: seconds for which a version stays that no alias points at.
        dry_run: only say what would go.

    Returns:
        The versions that went.

    Raises:
        AdapterError: an alias cannot be read; then nothing is taken, as it might need anything.
        StoreError: the store cannot be written.
    """
    if isinstance(store, BucketStore):
        return collect_in_bucket(store, keep, grace, dry_run)
    gone: list[Reference] = []
    kept = wanted(store, keep)
    for name in own_folders(store):
        with store.writes(name), ExitStack() as held:
            candidates = []
            for reference in (Reference(name, digest) for digest in store.versions(name)):
                path = store.path(reference)
                if reference in kept or _age(path) < grace:
                    continue
                lease = Lease.take_alone(path)
                if lease is not None:
                    held.enter_context(lease)
                    candidates.append(reference)
            # From here on nobody can move an alias to a candidate; some may have done so before.
            now_kept = wanted(store, keep) if candidates else kept
            taken = [
                reference
                for reference in candidates
                if reference not in now_kept and _age(store.path(reference)) >= grace
            ]
            gone += taken
            if not dry_run:
                for reference in taken:
                    path = store.path(reference)
                    os.rename(path, path.with_name(f"{TRASH}{secrets.token_hex(6)}"))
                if taken:
                    fsync(store.root / name)
        if not dry_run:
            with store.writes(name):
                _sweep(store, name, grace)
    return gone


def _age(path: os.PathLike[str]) -> float:
    """Seconds since it was put in place; infinite if it is gone."""
    try:
        return time.time() - os.stat(path).st_ctime
    except FileNotFoundError:
        return float("inf")


def _sweep(store: Store, name: str, grace: float) -> None:
    """Delete what is half deleted, what is half built by nobody, and the rests of an adoption.

    A file of a plain folder that a version holds too is such a rest, or the first of a new adapter
    that is being copied in: it stays for `grace` seconds.
    """
    home = store.root / name
    rubbish = any(entry.name.startswith((TRASH, BUILDING)) for entry in os.scandir(home))
    adopted = moves.read_last(home) is not None and store.leftovers(name)
    if not rubbish and not adopted:
        return
    for trash in home.glob(f"{TRASH}*"):
        remove_tree(trash)
    with writing(home):  # whoever begins to build holds it until their lease is taken
        for building in home.glob(f"{BUILDING}*"):
            if building.is_symlink():  # a lease would lie behind it
                remove_tree(building)
            elif (lease := Lease.take_alone(building)) is not None:
                with lease:
                    remove_tree(building)
        if moves.read_last(home) is not None:
            for file in store.leftovers(name):
                if _age(home / file) >= grace:
                    (home / file).unlink(missing_ok=True)
