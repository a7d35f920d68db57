"""A store in a bucket, over a real S3 that fails, races and forgets; two machines share nothing."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cloud import BUCKET, once
from tiny import make_adapter, make_base, served

from adapters import places, vllm_loader
from adapters.__main__ import main
from adapters.adapter import CONFIG, WEIGHTS, AdapterError
from adapters.audit import verify
from adapters.bucket import objects as objects_module
from adapters.bucket import peft_source
from adapters.bucket.leases import SECONDS, Leases
from adapters.bucket.objects import AwayError, Objects, UnchangedError
from adapters.bucket.store import BucketStore
from adapters.calibration import add_gate
from adapters.collect import collect
from adapters.exchange import SourceError, export_adapter, import_adapter
from adapters.manifest import Gate
from adapters.moves import Move
from adapters.places import open_store, parse_place
from adapters.reference import Reference
from adapters.store import MovedMeanwhileError, Store, StoreAwayError, StoreError
from reasonmaxxer import doctor

if TYPE_CHECKING:
    from cloud import Asked, Cloud

Fault = Callable[["Asked"], "int | str | None"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different content."""
    place = tmp_path_factory.mktemp("sources")
    return [make_adapter(place / str(number), value=number + 1.0) for number in range(6)]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A store of the test's own."""
    return f"of-tests/{zlib.crc32(request.node.nodeid.encode()):x}"


@pytest.fixture
def machine(cloud: Cloud, prefix: str, quick_disk: Path) -> Callable[[str], BucketStore]:
    """A machine by name, each with a cache of its own."""
    return lambda name: cloud.store(prefix, quick_disk / name)


Machines = Callable[[str], BucketStore]


def life(store: Store, sources: list[Path]) -> list[str]:
    """What happens to a store, and what it answers."""
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


def test_it_answers_as_a_folder_does(
    machine: Machines, quick_disk: Path, sources: list[Path]
) -> None:
    assert life(machine("a"), sources) == life(Store(quick_disk / "folder"), sources)


def test_another_machine_sees_all_of_it(machine: Machines, sources: list[Path]) -> None:
    here = machine("a")
    for source in sources[:2]:
        here.publish(source, "alpha")
    there = machine("b")
    assert served(there) == served(here)
    assert there.history("alpha") == here.history("alpha")
    assert (there.get("alpha").path / WEIGHTS).read_bytes() == (sources[1] / WEIGHTS).read_bytes()


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


# ---------------------------------------------------------------------------------------- faults

FAULTS: dict[str, Fault] = {
    "500": lambda asked: None if asked.answered else 500,
    "503": lambda asked: None if asked.answered else 503,
    "429": lambda asked: None if asked.answered else 429,
    "cut": lambda asked: None if asked.answered else "cut",
    "answer lost": lambda asked: "cut" if asked.answered else None,
    "500 all the same": lambda asked: 500 if asked.answered else None,
}


@pytest.mark.parametrize(
    ("key", "what"),
    [("index.json", what) for what in FAULTS]
    + [(key, what) for key in (".json", ".jsonl", WEIGHTS) for what in ("503", "answer lost")],
)
def test_one_fault_changes_nothing(
    cloud: Cloud, machine: Machines, sources: list[Path], key: str, what: str
) -> None:
    store = machine("a")
    first = store.publish(sources[0], "alpha").id

    def fault(asked: Asked) -> int | str | None:
        return FAULTS[what](asked) if asked.is_write(key) else None

    with cloud.failing(once(fault)):
        second = store.publish(sources[1], "alpha").id
    assert [move.version for move in machine("b").history("alpha")] == [first, second]
    assert verify(machine("b")) == []


@pytest.mark.parametrize("what", [*FAULTS, "half"])
def test_a_fault_while_reading_is_gone_with_the_next_try(
    cloud: Cloud, machine: Machines, sources: list[Path], what: str
) -> None:
    version = machine("a").publish(sources[0], "alpha")

    def fault(asked: Asked) -> int | str | None:
        if asked.method != "GET" or WEIGHTS not in asked.path:
            return None
        return FAULTS[what](asked) if what in FAULTS else ("half" if asked.answered else None)

    there = machine("b")
    with cloud.failing(once(fault)):
        try:
            found = there.get("alpha")
        except StoreAwayError:  # named, and nothing half is in the cache
            assert not there.path(Reference("alpha", version.hash)).exists()
            found = there.get("alpha")
    assert (found.path / WEIGHTS).read_bytes() == (sources[0] / WEIGHTS).read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is patient."""
    limits = {"timeout": 1, "connect": 1, "retries": 0}
    monkeypatch.setattr(objects_module, "QUICK", limits)
    monkeypatch.setattr(objects_module, "PATIENT", limits)


@pytest.mark.usefixtures("quick")
def test_a_publisher_that_dies_at_any_write_leaves_old_or_new(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    store = machine("a")
    store.publish(sources[0], "alpha")
    old = served(store)
    for done in range(30):
        left = [done]

        def dead(asked: Asked, left: list[int] = left) -> str | None:
            if asked.method == "PUT" and not asked.answered:
                left[0] -= 1
            return "cut" if left[0] < 0 else None

        machine_of_it = machine(f"dying-{done}")
        with cloud.failing(dead):
            try:
                machine_of_it.publish(sources[1], "alpha")
            except StoreAwayError:
                survived = False
            else:
                survived = True
        witness = machine(f"witness-{done}")
        assert verify(witness) == []
        now = served(witness)
        assert survived or now == old
        if survived:
            break
    assert done > 4
    assert now != old
    assert len(witness.history("alpha")) == 2


@pytest.mark.usefixtures("quick")
def test_a_storage_that_stays_away_is_named_and_nothing_moves(
    cloud: Cloud, machine: Machines, sources: list[Path], quick_disk: Path, prefix: str
) -> None:
    store = machine("a")
    ids = [store.publish(source, "alpha").id for source in sources[:2]]
    other = machine("b")
    with cloud.away():
        for act in (
            lambda: store.alias("alpha", ids[0]),
            lambda: store.rollback("alpha"),
            lambda: store.publish(sources[2], "alpha"),
            lambda: other.get("alpha"),
            lambda: other.lease("alpha"),
            lambda: other.resolve("alpha@000000000000"),
            lambda: collect(store),
        ):
            with pytest.raises(StoreAwayError, match=f"s3://{BUCKET}/{prefix}"):
                act()
        # What is here can be used, by a process that starts now as well.
        again = cloud.store(prefix, quick_disk / "a")
        assert again.get("alpha").id == ids[1]
        with again.lease("alpha").lease:
            pass
        with pytest.raises(OSError, match="out of reach"):
            cloud.store(prefix, quick_disk / "new")
    store.refresh()
    assert store.history("alpha")[-1].version == ids[1]
    assert other.get("alpha").id == ids[1]


@pytest.mark.usefixtures("quick")
def test_a_storage_that_never_answers_is_away(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    store = machine("a")
    store.publish(sources[0], "alpha")
    over = threading.Event()

    def silent(asked: Asked) -> None:
        over.wait(30)

    with cloud.failing(silent):
        with pytest.raises(AwayError):
            store.refresh()
        over.set()
    store.refresh()


def test_what_is_damaged_in_the_bucket_is_never_used(
    cloud: Cloud, machine: Machines, sources: list[Path], prefix: str
) -> None:
    store = machine("a")
    version = store.publish(sources[0], "alpha")
    weights = f"{prefix}/files/alpha/{version.hash}/{WEIGHTS}"
    content = bytearray((sources[0] / WEIGHTS).read_bytes())
    content[-1] ^= 1
    cloud.client().put_object(Bucket=BUCKET, Key=weights, Body=bytes(content))
    there = machine("b")
    with pytest.raises(AdapterError, match="damaged"):
        there.get("alpha")
    assert not there.path(Reference("alpha", version.hash)).exists()
    assert any("damaged" in str(problem) for problem in verify(there))
    cloud.client().delete_object(Bucket=BUCKET, Key=weights)
    with pytest.raises(AdapterError, match="gone"):
        there.get("alpha")
    for key, body in ((f"records/alpha/{version.hash}.json", b"{"), ("index.json", b'{"x": 1}')):
        cloud.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=body)
    with pytest.raises(AdapterError, match="its record"):
        there.lease("alpha")
    with pytest.raises(ValueError, match=r"index\.json"):
        machine("c")
    cloud.client().delete_object(Bucket=BUCKET, Key=f"{prefix}/index.json")
    with pytest.raises(ValueError, match="gone"):
        there.refresh()
    assert there.names() == ["alpha"]


def test_a_record_may_name_no_other_file(
    cloud: Cloud, machine: Machines, sources: list[Path], prefix: str
) -> None:
    version = machine("a").publish(sources[0], "alpha")
    key = f"{prefix}/records/alpha/{version.hash}.json"
    record = json.loads(cloud.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())
    for file, size in (("../../evil", 1), ("README.md", 2**40)):
        facts = {"size": size, "sha256": "0" * 64}
        damaged = record | {"files": record["files"] | {file: facts}}
        cloud.client().put_object(Bucket=BUCKET, Key=key, Body=json.dumps(damaged).encode())
        with pytest.raises(AdapterError, match="its record names"):
            machine("b").get("alpha")


def test_a_damaged_cache_is_mended(machine: Machines, sources: list[Path]) -> None:
    store = machine("a")
    version = store.publish(sources[0], "alpha")
    weights = store.path(Reference("alpha", version.hash)) / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(bytes(content))
    assert store.get("alpha").id == version.id
    assert weights.read_bytes() == (sources[0] / WEIGHTS).read_bytes()


# ----------------------------------------------------------------------- the cache, and who uses it


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


def test_an_unreadable_lease_stops_the_collection(machine: Machines, sources: list[Path]) -> None:
    ours = machine("a")
    for source in sources[:2]:
        ours.publish(source, "alpha")
    ours.objects.put("leases/other.json", b"{")
    with pytest.raises(StoreError, match=r"other\.json is no lease"):
        collect(ours, 0, 0)
    assert len(machine("b").versions("alpha")) == 2


# --------------------------------------------------------------------------------- places, commands


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("folder", Path("folder")),
        ("a:b/c", Path("a:b/c")),
        ("file:///a/b%20c", Path("/a/b c")),
        ("file://localhost/a", Path("/a")),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/a//b/", "s3://bucket/a/b"),
        ("gs://bucket/p", "gs://bucket/p"),
        ("az://container/p", "az://container/p"),
    ],
)
def test_places(text: str, place: Path | str) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:secret@bucket/prefix",
        "s3://secret@bucket",
        "s3://bucket/p?X-Amz-Signature=secret",
        "s3://bucket/p#secret",
        "https://user:secret@host/bucket",
        "S3://key:secret@bucket",
    ],
)
def test_credentials_in_an_address_are_refused_and_never_shown(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.settings import SettingsError, from_command_line
    from training.fit_config import FitConfig

    with pytest.raises(ValueError, match="://") as caught:
        parse_place(text)
    told = str(caught.value)
    with pytest.raises(SystemExit):
        main(["list", "--store", text])
    monkeypatch.setenv("REASONMAXXER_MODEL", "any")
    with pytest.raises(SettingsError) as refused:
        from_command_line(["--adapters", text])
    told += str(refused.value)
    with pytest.raises(SystemExit):
        FitConfig.load(["--model", "any", "--publish", "a", "--store", text])
    monkeypatch.setenv("REASONMAXXER_ADAPTERS", text)
    with pytest.raises(SystemExit):
        main(["list"])
    output = capsys.readouterr()
    told += output.out + output.err
    assert told.count("address") + told.count("no storage") >= 4
    assert "secret" not in told


@pytest.mark.parametrize("text", ["ftp://a/b", "s3://", "s3:///x", "s3://b/../c", "file://host/x"])
def test_addresses_of_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"://|folder"):
        parse_place(text)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    with pytest.raises(ValueError, match=r"reasonmaxxer\[cloud\]"):
        Objects.open("s3://bucket")


def test_credentials_of_a_profile(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[Path]
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = cloud.store("profile", tmp_path / "cache")
    assert (
        store.publish(sources[0], "alpha").id
        == cloud.store("profile", tmp_path / "b").get("alpha").id
    )
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match="AWS profile"):
        cloud.store("profile", tmp_path / "c")


def test_commands(
    cloud: Cloud,
    prefix: str,
    tmp_path: Path,
    sources: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    url = f"s3://{BUCKET}/{prefix}"

    def run(*argv: object, code: int = 0) -> str:
        try:
            found = main([*map(str, argv), "--store", url])
        except SystemExit as stop:
            found = int(str(stop.code))
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out + output.err

    base = make_base(tmp_path / "base")
    assert "NAME" in run("list")
    monkeypatch.setattr(vllm_loader, "bring_in", lambda: None)  # half a minute
    first = run("publish", sources[0], "--name", "alpha").strip()
    second = run("publish", sources[1], "--name", "alpha").strip()
    assert second in run("list")
    assert run("alias", "prod", first).strip() == f"prod -> {first}"
    assert run("rollback", "alpha").strip() == f"alpha -> {first}"
    assert "'nobody' is not in " + url in run("show", "nobody", code=2)
    assert second in run("show", "alpha")
    given = ("--base", base.folder, "--name", "beta", "--family", "qwen2.5")
    imported = run("import", sources[2], *given)
    assert "beta@" in imported
    assert run("export", "beta", tmp_path / "exported").startswith("beta@")
    assert run("verify").startswith("sound: 3 adapter(s), 3 version(s)")
    assert second in run("gc", "--grace", 0, "--keep", 0)
    monkeypatch.setenv(places.CACHE_SIZE_VARIABLE, "much")
    assert "REASONMAXXER_STORE_CACHE_GIB: 'much'" in run("list", code=2)
    monkeypatch.delenv(places.CACHE_SIZE_VARIABLE)
    monkeypatch.setattr(objects_module, "QUICK", {"timeout": 1, "connect": 1, "retries": 0})
    monkeypatch.setenv(places.STORE_VARIABLE, url)
    state = doctor.look_at_store()
    assert (state.path, state.exists, state.writable, state.adapters) == (url, True, True, 3)
    with cloud.away():
        assert not doctor.look_at_store().writable
        assert f"{url} cannot be written" in run("alias", "prod", first, code=1)
        assert first in run("list")


def test_an_export_needs_no_more_than_the_bucket(
    machine: Machines, sources: list[Path], tmp_path: Path
) -> None:
    version = machine("a").publish(sources[0], "alpha")
    assert export_adapter(machine("b"), "alpha", tmp_path / "out").id == version.id


def test_a_gate_for_an_adapter_in_a_bucket(
    machine: Machines, sources: list[Path], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    machine("a").publish(sources[0], "alpha", base=base)
    gate = Gate(tau=0.5, rate=0.1, tokens=100)
    there = machine("b")
    added = add_gate(there, "alpha", gate, base, family="qwen2.5")
    assert machine("c").get("alpha", base, hashes=False).gate == gate
    assert len(there.history("alpha")) == 2
    assert there.history("alpha")[-1].version == added.id


@pytest.mark.usefixtures("quick")
def test_a_fit_asks_first_whether_it_may_publish(cloud: Cloud, prefix: str) -> None:
    url = f"s3://{BUCKET}/{prefix}"
    places.check_writable(url)
    assert cloud.keys(prefix) == []
    refused = cloud.failing(lambda asked: 403 if asked.method == "PUT" else None)
    with refused, pytest.raises(ValueError, match=f"{url} cannot be written"):
        places.check_writable(url)


@pytest.mark.usefixtures("quick")
def test_a_thousand_questions_take_no_thousand_timeouts(
    cloud: Cloud, machine: Machines, sources: list[Path]
) -> None:
    for number in range(3):
        machine("a").publish(sources[0], f"adapter-{number}")
    store = machine("b")
    with cloud.away():
        with pytest.raises(AwayError):
            store.refresh()
        cloud.asked.clear()
        store.bring_records(store.names())
        refused = store.listing(hashes=False).refused
        assert [type(error) for error in refused.values()] == [StoreAwayError] * 3
        for reference in ("adapter-0", "adapter-0@000000000000"):
            with pytest.raises(StoreAwayError):
                store.get(reference)
        with pytest.raises(StoreAwayError):
            store.lease("adapter-0")
        assert cloud.asked == []


def test_an_import_from_a_folder_in_a_bucket(
    cloud: Cloud, sources: list[Path], tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_loader, "bring_in", lambda: None)
    store = Store(tmp_path / "store")
    url = f"s3://{BUCKET}/{prefix}/theirs"
    with pytest.raises(SourceError, match="holds no adapter"):
        import_adapter(store, url, "alpha", base=None)
    for name in (CONFIG, WEIGHTS):
        content = (sources[0] / name).read_bytes()
        cloud.client().put_object(Bucket=BUCKET, Key=f"{prefix}/theirs/{name}", Body=content)
    for name in ("optimizer.pt", "deeper/adapter_config.json"):
        cloud.client().put_object(Bucket=BUCKET, Key=f"{prefix}/theirs/{name}", Body=b"x")
    version = import_adapter(store, url, "alpha", base=None)
    assert version.hash == Store(tmp_path / "other").publish(sources[0], "alpha").hash
    base = make_base(tmp_path / "base")
    bound = import_adapter(store, url, "beta", base=base, family="qwen2.5")
    assert bound.manifest is not None
    assert bound.manifest.made_by == {"imported from": url}
    for wrong, told in ((f"{url}?key=secret", "credentials"), ("ftp://a/b", "no storage")):
        with pytest.raises(SourceError, match=told) as caught:
            import_adapter(store, wrong, "alpha", base=None)
        assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match="revisions"):
        import_adapter(store, url, "alpha", base=None, revision="main")
    monkeypatch.setattr(objects_module, "PATIENT", {"timeout": 1, "connect": 1, "retries": 0})
    with cloud.away(), pytest.raises(SourceError, match="cannot be listed"):
        import_adapter(store, url, "alpha", base=None)
    monkeypatch.setitem(peft_source.LIMITS, CONFIG, 3)
    with pytest.raises(SourceError, match="larger than 3 bytes"):
        import_adapter(store, url, "alpha", base=None)


def test_the_default_store_may_be_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.STORE_VARIABLE, "s3://bucket/prefix/")
    assert places.default_store() == "s3://bucket/prefix"
    monkeypatch.setenv(places.STORE_VARIABLE, "file:///some/folder")
    assert places.default_store() == Path("/some/folder")
    assert open_store("file:///some/folder") == Store(Path("/some/folder"))
