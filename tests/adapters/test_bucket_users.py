"""Who uses a version of a bucket: the cache on this machine, leases, and garbage collection."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapters.adapter import WEIGHTS, AdapterError
from adapters.audit import verify
from adapters.bucket.leases import SECONDS, Leases
from adapters.bucket.versions import record_key
from adapters.collect import collect
from adapters.reference import Reference
from adapters.store import StoreError

if TYPE_CHECKING:
    from cloud import Asked, Cloud, Machines


def test_the_cache_keeps_what_is_leased_and_what_was_used_last(
    cloud: Cloud, machine: Machines, sources: list[Path], prefix: str, tmp_path: Path
) -> None:
    for number, source in enumerate(sources[:4]):
        machine("a").publish(source, f"adapter-{number}")
    small = cloud.store(prefix, tmp_path / "small", gib=1e-9)
    served_one = small.lease("adapter-0")
    for number in (1, 2):
        small.lease(f"adapter-{number}").lease.close()
    kept = {str(one.reference) for one in small.cache.versions()}
    assert kept == {str(served_one.reference), str(small.resolve("adapter-2"))}
    served_one.lease.close()
    small.lease("adapter-3").lease.close()
    assert [one.reference.name for one in small.cache.versions()] == ["adapter-3"]


def test_collection_leaves_what_another_machine_uses(
    cloud: Cloud, machine: Machines, sources: list[Path], prefix: str
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:3]]
    theirs.refresh()
    held = theirs.lease(ids[0])
    assert collect(ours, 0, 3600) == []
    assert list(map(str, collect(ours, 0, 0, dry_run=True))) == [ids[1]]
    assert list(map(str, collect(ours, 0, 0))) == [ids[1]]
    assert theirs.get(ids[0]).id == ids[0]
    held.lease.close()
    held.lease.close()  # again is nothing
    assert not [key for key in cloud.keys(prefix) if key.startswith("leases/")]
    assert list(map(str, collect(ours, 0, 0))) == [ids[0]]
    with pytest.raises(KeyError):
        machine("c").resolve(ids[0])
    assert {key.split("/")[2] for key in cloud.keys(prefix) if key.startswith("files/")} == {
        ids[2].partition("@")[2]
    }
    assert verify(machine("c")) == []


def test_a_lease_ends_by_the_storages_clock(machine: Machines, sources: list[Path]) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:2]]
    now = ours.objects.now()
    with theirs.lease(ids[0]).lease:
        assert ours.leases.everybodys(now) == {ids[0]}
        assert ours.leases.everybodys(now + timedelta(seconds=SECONDS + 60)) == set()
        ours.leases.sweep(now + timedelta(seconds=20 * SECONDS))
        assert ours.leases.everybodys(now) == set()


def test_a_lease_is_renewed_while_it_is_held(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    version = machine("a").publish(sources[0], "alpha").id
    store = machine("b")
    store.leases = Leases(store.objects, renewal=0.01)
    renewed = threading.Event()
    lease = store.lease("alpha").lease
    cloud.asked.clear()

    def count(asked: Asked) -> None:
        if "/leases/" in asked.path and asked.method == "PUT" and asked.answered:
            renewed.set()

    with cloud.failing(count):
        assert renewed.wait(30)
        # What could not be written for a while is written again.
        with cloud.away():
            store.leases.count(Reference.parse(version))
        renewed.clear()
        assert renewed.wait(30)
    assert store.leases.everybodys(store.objects.now()) == {version}
    store.leases.release(Reference.parse(version))
    lease.close()
    assert store.leases.everybodys(store.objects.now()) == set()


def test_a_version_that_is_being_collected_is_gone_for_new_users(
    machine: Machines, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:2]]
    everybodys, asked = Leases.everybodys, []

    def look(leases: Leases, now: Any) -> set[str]:
        found = everybodys(leases, now)
        asked.append(found)
        if len(asked) == 2:  # marked, and not yet deleted
            for act in (lambda: theirs.lease(ids[0]), lambda: theirs.alias("late", ids[0])):
                with pytest.raises(KeyError):
                    act()
            with pytest.raises(StoreError, match="just being collected"):
                theirs.publish(sources[0], "alpha")
        return found

    monkeypatch.setattr(Leases, "everybodys", look)
    assert list(map(str, collect(ours, 0, 0))) == [ids[0]]
    assert len(asked) == 2
    assert theirs.publish(sources[0], "alpha").id == ids[0]
    assert verify(ours) == []


def test_a_lease_taken_before_the_mark_saves_its_version(
    machine: Machines, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha").id for source in sources[:2]]
    write, held = ours.all_versions.write, []

    def marked(*arguments: Any) -> None:
        if not held:  # after the first look at the leases, before the mark
            held.append(theirs.lease(ids[0]).lease)
        write(*arguments)

    monkeypatch.setattr(ours.all_versions, "write", marked)
    assert collect(ours, 0, 0) == []
    known = ours.all_versions.record(Reference.parse(ids[0]))
    assert known is not None
    assert not known.record.collecting
    held[0].close()


def test_a_collection_that_died_is_finished_by_the_next(
    cloud: Cloud, machine: Machines, sources: list[Path], prefix: str
) -> None:
    ours = machine("a")
    ids = [ours.publish(source, "alpha").id for source in sources[:2]]
    reference = Reference.parse(ids[0])
    known = ours.all_versions.record(reference)
    assert known is not None
    marked = known.record.model_copy(update={"collecting": True})
    ours.all_versions.write(reference, marked, known.etag)
    ours.objects.delete([f"files/alpha/{reference.hash}/{WEIGHTS}"])
    ours.objects.put("collecting.json", b"")
    with pytest.raises(StoreError, match="another collection"):
        collect(ours)
    ours.objects.delete(["collecting.json"])
    assert list(map(str, collect(ours, 0, 3600))) == [ids[0]]
    assert not [key for key in cloud.keys(prefix) if reference.hash in key]


def test_what_killed_publishers_left_goes_and_what_is_published_meanwhile_stays(
    cloud: Cloud,
    machine: Machines,
    sources: list[Path],
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = machine("a"), machine("b")
    ids = [ours.publish(source, "alpha", alias=False).id for source in sources[:3]]
    left = list(map(Reference.parse, ids))
    ours.objects.delete([record_key(reference) for reference in left])
    monkeypatch.setattr("adapters.bucket.collect.UNFINISHED", -1)  # seconds; the files are young
    everybodys, held = Leases.everybodys, []

    def look(leases: Leases, now: Any) -> set[str]:
        found = everybodys(leases, now)
        if not held and len(cloud.keys(f"{prefix}/records")) == 3:  # all are marked
            with pytest.raises(StoreError, match="just being collected"):
                theirs.publish(sources[0], "alpha")
            held.append(found)
        return found

    monkeypatch.setattr(Leases, "everybodys", look)
    theirs.leases.count(left[1])  # as if its upload had begun before
    theirs.leases.write(left[1])
    assert collect(ours, 0, 3600) == []
    assert held == [{ids[1]}]
    theirs.leases.release(left[1])
    kept = [key for key in cloud.keys(prefix) if not key.startswith("aliases/")]
    assert {key.split("/")[2] for key in kept} == {left[1].hash}
    for source, version in zip(sources, ids, strict=False):
        assert theirs.publish(source, "alpha").id == version
    assert collect(ours, 3, 3600) == []
    assert verify(ours) == []


def test_what_a_killed_collection_marked_and_an_alias_needs_is_unmarked(
    machine: Machines, sources: list[Path]
) -> None:
    ours = machine("a")
    version = ours.publish(sources[0], "alpha")
    reference = Reference.parse(version.id)
    known = ours.all_versions.record(reference)
    assert known is not None
    marked = known.record.model_copy(update={"collecting": True})
    ours.all_versions.write(reference, marked, known.etag)
    with pytest.raises(AdapterError, match="is gone"):
        machine("b").lease("alpha")
    assert collect(ours, 0, 0) == []
    machine("c").lease("alpha").lease.close()
    assert ours.publish(sources[0], "alpha").id == version.id


def test_an_unreadable_lease_stops_the_collection(machine: Machines, sources: list[Path]) -> None:
    ours = machine("a")
    for source in sources[:2]:
        ours.publish(source, "alpha")
    ours.objects.put("leases/other.json", b"{")
    with pytest.raises(StoreError, match=r"other\.json is no lease"):
        collect(ours, 0, 0)
    assert len(machine("b").versions("alpha")) == 2
