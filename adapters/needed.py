"""What the aliases of a store need: the versions that garbage collection must leave alone."""

from __future__ import annotations

from contextlib import suppress

from adapters import moves
from adapters.reference import Reference
from adapters.store import Store


def wanted(store: Store, keep: int) -> set[Reference]:
    """What the aliases point at, and would after each of their next `keep` roll-backs."""
    found: set[Reference] = set()
    for name in own_folders(store):
        with suppress(KeyError):  # removed between the two looks
            path = moves.path_back(store.history(name))
            found.update(map(Reference.parse_version, path[-1 - keep :]))
    return found


def own_folders(store: Store) -> list[str]:
    """The store's own; where a link leads, nothing is taken, and nothing served needs it."""
    return [name for name in store.folders() if not (store.root / name).is_symlink()]
