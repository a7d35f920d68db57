"""Everything that may happen to a store, in one fixed order, and what it answers.

Two stores that answer alike behave alike, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import served

from adapters.adapter import AdapterError
from adapters.audit import verify
from adapters.collect import collect
from adapters.store import Store


def life(store: Store, sources: list[Path]) -> list[str]:
    """The answers of `store`, in words.

    Args:
        sources: three adapters of different content.
    """
    told: list[str] = []

    def say(act: Callable[[], Any]) -> None:
        try:
            told.append(str(act()))
        except (AdapterError, KeyError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}".replace(store.place, "STORE"))

    first = store.publish(sources[0], "alpha", by="me").id
    second = store.publish(sources[1], "alpha", by="me").id
    say(lambda: store.publish(sources[1], "alpha", by="me").id)
    third = store.publish(sources[2], "alpha", alias=False).id
    say(lambda: store.publish(sources[0], "No Name").id)
    for version in (third, first, first, "alpha@000000000000", "gone@000000000000", "alpha"):
        say(lambda version=version: store.alias("prod", version, by="me").version)
    for name in ("prod", "alpha", "alpha", "nobody"):
        say(lambda name=name: store.rollback(name, by="me").version)
    for reference in ("alpha", "prod", second, "beta", "alpha@000000000000", "..", "a@b"):
        say(lambda reference=reference: store.get(reference).id)
        say(lambda reference=reference: store.get(reference, hashes=False).id)
        say(lambda reference=reference: store.resolve(reference))
    for name in (*store.names(), "nobody"):
        say(lambda name=name: store.previous(name))
        say(lambda name=name: [(m.version, m.before, m.action, m.by) for m in store.history(name)])
        told.append(str(store.versions(name)))
    told.append(str([store.names(), sorted(store.listing().offered), verify(store)]))
    told.append(str([collect(store, 0, 0, dry_run=True), collect(store, 0, 0), verify(store)]))
    told.append(str([served(store), {name: store.versions(name) for name in store.folders()}]))
    return told
