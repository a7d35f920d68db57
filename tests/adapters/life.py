"""What may happen to any store: all of it in a fixed order, and moves by several machines at once.

Two stores that answer alike behave alike, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tiny import served

from adapters.adapter import AdapterError
from adapters.audit import verify
from adapters.collect import collect
from adapters.moves import Move
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


def no_move_is_lost(machine: Callable[[str], Store], sources: list[Path]) -> None:
    """Three machines move two aliases at once; afterwards the history has each of their moves."""
    first = machine("0")
    versions = [first.publish(source, "shared").id for source in sources[:3]]
    names = ["one", "two"]

    def move(number: int) -> list[Move]:
        store = machine(str(number))
        moved = []
        for turn in range(6):
            name = names[turn % 2]
            moved.append(store.alias(name, versions[(turn + number) % 3], by=f"machine {number}"))
        return moved

    with ThreadPoolExecutor(3) as pool:
        made = [move for moves in pool.map(move, range(3)) for move in moves]
    store = machine("last")
    lines = [line for name in names for line in store.history(name)]
    # A move to where the alias was already is no line, but then it is another one's.
    assert set(lines) == set(made)
    assert verify(store) == []
