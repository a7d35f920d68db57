"""A store in a bucket whose storage fails, dies, is away or holds something else than it should."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cloud import BUCKET, once
from support import flip_bit
from tiny import served

from adapters.adapter import WEIGHTS, AdapterError
from adapters.audit import verify
from adapters.bucket.objects import AwayError
from adapters.collect import collect
from adapters.reference import Reference
from adapters.store import StoreAwayError

if TYPE_CHECKING:
    from cloud import Asked, Cloud, Fault, Machines

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
    weights.chmod(0o644)
    flip_bit(weights)
    assert store.get("alpha").id == version.id
    assert weights.read_bytes() == (sources[0] / WEIGHTS).read_bytes()


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
