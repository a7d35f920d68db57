"""Several processes on one store: no move is lost, no reader sees anything but a valid state."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from tiny import make_adapter

from adapters.audit import verify
from adapters.collect import collect
from adapters.lease import Lease
from adapters.moves import path_back
from adapters.store import Store

FORK = multiprocessing.get_context("fork")
MOVES = int(os.environ.get("REASONMAXXER_STORE_MOVES", "1000"))
PUBLISH_EVERY = 100
WRITERS = 2


def move(root: Path, sources: Path, writer: int) -> None:
    """Half of all moves: every hundredth publishes something new, the others switch between two."""
    store = Store(root)
    own = [
        store.publish(sources / f"{writer}-{which}", "shared", alias=False).id for which in range(2)
    ]
    for number in range(MOVES // WRITERS):
        by = f"{writer}:{number}"
        if number % PUBLISH_EVERY == 0:
            folder = make_adapter(sources / by, value=1 + number * WRITERS + writer)
            store.publish(folder, "shared", by=by)
        else:
            moved = store.alias("shared", own[number % 2], by=by)
            assert moved.by == by


def read(root: Path, stop: Event, reads: Any) -> None:
    """Until told to stop: what the alias gives is whole, and the history only ever grows."""
    store = Store(root)
    count, longest = 0, 0
    while not stop.is_set():
        with store.lease("shared").lease:
            store.get("shared")
        if count % 100 == 0:
            length = len(store.history("shared"))
            assert length >= longest
            longest = length
        count += 1
    reads.put(count)


def test_two_processes_move_one_alias_a_thousand_times(quick_disk: Path) -> None:
    root, sources = quick_disk / "store", quick_disk / "sources"
    for writer in range(WRITERS):
        for which in range(2):
            make_adapter(sources / f"{writer}-{which}", value=0.1 + writer + which / 2)
    Store(root).publish(sources / "0-0", "shared", by="first")
    stop, reads = FORK.Event(), FORK.Queue()
    reader = FORK.Process(target=read, args=(root, stop, reads))
    reader.start()
    writers = [FORK.Process(target=move, args=(root, sources, w)) for w in range(WRITERS)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    stop.set()
    assert reads.get() > 100
    reader.join()
    assert [process.exitcode for process in (*writers, reader)] == [0] * (WRITERS + 1)

    store = Store(root)
    history = store.history("shared")
    made = Counter(move.by for move in history[1:])
    wanted = {f"{w}:{n}" for w in range(WRITERS) for n in range(MOVES // WRITERS)}
    assert set(made) == wanted and max(made.values()) == 1
    for writer in range(WRITERS):
        order = [int(m.by.split(":")[1]) for m in history[1:] if m.by.startswith(f"{writer}:")]
        assert order == sorted(order)
    assert verify(store) == []
    assert len(store.versions("shared")) == 4 + MOVES // PUBLISH_EVERY


def publish_all(root: Path, sources: Path, rounds: int) -> None:
    store = Store(root)
    for number in range(rounds):
        store.publish(sources / str(number % 5), "shared", by=str(number))


def alias_all(root: Path, rounds: int) -> None:
    """Point another name at whatever of `shared` is there; what it got is not taken from it."""
    store = Store(root)
    moved = 0
    while moved < rounds:
        for digest in store.versions("shared"):
            try:
                store.alias("latest", f"shared@{digest}", by=str(moved))
            except KeyError:
                continue  # collected before it could be held
            store.get("latest")
            moved += 1


def test_collection_takes_nothing_that_an_alias_gets_or_a_reader_has(quick_disk: Path) -> None:
    """Five contents come and go and come again, while all that may be collected is."""
    root, sources, rounds = quick_disk / "store", quick_disk / "sources", 100
    for number in range(5):
        make_adapter(sources / str(number), value=number)
    store = Store(root)
    store.publish(sources / "4", "shared")
    stop, reads = FORK.Event(), FORK.Queue()
    reader = FORK.Process(target=read, args=(root, stop, reads))
    writers = [FORK.Process(target=publish_all, args=(root, sources, rounds)) for _ in range(2)]
    writers.append(FORK.Process(target=alias_all, args=(root, rounds)))
    for process in (reader, *writers):
        process.start()
    gone = 0
    while any(process.is_alive() for process in writers):
        gone += len(collect(store, keep=0, grace=0))
        assert verify(store) == []
    stop.set()
    assert reads.get() > 10
    for process in (reader, *writers):
        process.join()
        assert process.exitcode == 0
    assert gone > 10
    collect(store, keep=0, grace=0)
    aliased = {store.resolve(name).hash for name in ("shared", "latest")}
    assert set(store.versions("shared")) == aliased


def test_a_lease_holds_until_its_process_ends(quick_disk: Path) -> None:
    store = Store(quick_disk / "store")
    for value in range(2):
        version = store.publish(make_adapter(quick_disk / str(value), value=value), "alpha")
    first = store.history("alpha")[0].version

    held, release = FORK.Event(), FORK.Event()

    def hold() -> None:
        lease = store.lease(first)
        held.set()
        release.wait()
        lease.lease.close()

    process = FORK.Process(target=hold)
    process.start()
    held.wait()
    assert collect(store, keep=0, grace=0) == []
    process.kill()
    process.join()
    assert [str(reference) for reference in collect(store, keep=0, grace=0)] == [first]
    with pytest.raises(KeyError):
        store.lease(first)
    assert store.get("alpha").hash == version.hash


def test_a_lease_is_shared_and_let_go_by_the_last(quick_disk: Path) -> None:
    store = Store(quick_disk / "store")
    for value in range(2):
        store.publish(make_adapter(quick_disk / str(value), value=value), "alpha")
    first = store.history("alpha")[0].version
    leases = [store.lease(first).lease for _ in range(3)]
    for lease in leases:
        assert collect(store, keep=0, grace=0) == []
        lease.close()
        lease.close()
    assert collect(store, keep=0, grace=0, dry_run=True) != []
    assert store.get(first).id == first
    assert [str(reference) for reference in collect(store, keep=0, grace=0)] == [first]
    assert Lease.take(store.root / "alpha" / first.partition("@")[2]) is None


def test_a_young_version_is_left_and_roll_backs_stay_possible(quick_disk: Path) -> None:
    store = Store(quick_disk / "store")
    for value in range(4):
        store.publish(make_adapter(quick_disk / str(value), value=value), "alpha")
    path = path_back(store.history("alpha"))
    assert collect(store) == []  # all are younger than an hour
    assert {str(reference) for reference in collect(store, keep=2, grace=0)} == {path[0]}
    assert store.rollback("alpha").version == path[2]
    assert store.rollback("alpha").version == path[1]
    with pytest.raises(ValueError, match="which it would roll back to, is gone"):
        store.rollback("alpha")
    assert str(store.resolve("alpha")) == path[1]
