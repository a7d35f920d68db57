"""A store in a bucket, over a real S3: what it answers, what it asks for, and who wins a race."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from life import life, no_move_is_lost
from tiny import served

from adapters.audit import verify
from adapters.bucket.objects import UnchangedError
from adapters.moves import Move
from adapters.reference import Reference
from adapters.store import MovedMeanwhileError, Store

if TYPE_CHECKING:
    from cloud import Asked, Cloud, Machines


def test_it_answers_as_a_folder_does(
    machine: Machines, quick_disk: Path, sources: list[Path]
) -> None:
    assert life(machine("a"), sources) == life(Store(quick_disk / "folder"), sources)
    assert served(machine("b")) == served(machine("a"))


def test_a_listing_reads_no_weights(cloud: Cloud, machine: Machines, sources: list[Path]) -> None:
    for number, source in enumerate(sources):
        machine("a").publish(source, f"adapter-{number}")
    there = machine("b")
    cloud.asked.clear()
    there.bring_records(there.names())
    assert len(there.listing(hashes=False).offered) == len(sources)
    assert not [path for _, path in cloud.asked if "/files/" in path]
    assert len(cloud.asked) == len(sources)
    there.listing(hashes=False)
    assert len(cloud.asked) == len(sources)


def test_nothing_new_costs_one_small_answer(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    store = machine("a")
    store.publish(sources[0], "alpha")
    cloud.asked.clear()
    before = sum(store.calls.values())
    assert not any(store.index.refresh() for _ in range(10))
    assert [method for method, _ in cloud.asked] == ["GET"] * 10
    assert sum(store.calls.values()) - before == 10
    found = store.objects.get("index.json")
    assert found is not None
    with pytest.raises(UnchangedError):
        store.objects.get("index.json", unless=found.etag)


# ----------------------------------------------------------------------------------------- races


def test_no_move_is_lost_between_machines(machine: Machines, sources: list[Path]) -> None:
    no_move_is_lost(machine, sources)


def test_of_two_that_race_one_wins(machine: Machines, sources: list[Path]) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:3]]
    theirs.refresh()
    last = ours.last_move("alpha")
    moves = [Move.now(Reference.parse(ids[n]), last, "alias", f"{n}") for n in (0, 1)]
    ours.index.move("alpha", moves[0], last)
    with pytest.raises(MovedMeanwhileError):
        theirs.index.move("alpha", moves[1], last)
    assert ours.history("alpha")[-1] == moves[0] == theirs.last_move("alpha")


def test_a_write_that_comes_too_late_is_made_again(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:3]]
    arrived, go_on = threading.Event(), threading.Event()

    def slow(asked: Asked) -> None:
        if asked.is_write("index.json") and not asked.answered and not arrived.is_set():
            arrived.set()
            go_on.wait(30)

    with cloud.failing(slow), ThreadPoolExecutor(1) as pool:
        late = pool.submit(ours.rollback, "alpha", by="ours")
        assert arrived.wait(30)
        theirs.rollback("alpha", by="theirs")
        go_on.set()
        assert late.result().version == ids[0]
    lines = ours.history("alpha")
    assert [line.version for line in lines] == [*ids, ids[1], ids[0]]
    assert [line.by for line in lines[-2:]] == ["theirs", "ours"]
    assert verify(ours) == []


def test_a_history_that_has_moved_on_gets_no_old_line(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha", alias=False).id for source in sources[:4]]
    ours.alias("alpha", ids[0])
    arrived, go_on = threading.Event(), threading.Event()

    def slow(asked: Asked) -> None:
        if "history/alpha" in asked.path and not asked.answered and not arrived.is_set():
            arrived.set()
            go_on.wait(30)

    with cloud.failing(slow), ThreadPoolExecutor(1) as pool:
        late = pool.submit(ours.alias, "alpha", ids[3])
        assert arrived.wait(30)
        for version in ids[1:3]:
            theirs.alias("alpha", version)
        go_on.set()
        late.result()
    assert [line.version for line in ours.history("alpha")] == ids
    assert verify(ours) == []
