"""A request keeps its version to the end; versions come and go around it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import answered, completion, engine_of, make_admission, put_plain, settled
from safetensors.numpy import load_file, save_file
from vllm.entrypoints.serve.engine.serving import BaseServing

from adapters.adapter import WEIGHTS, AdapterError
from adapters.lease import Lease
from adapters.store import Store
from serving.admission import Admission
from serving.metrics import QUEUE_SECONDS


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`alpha` has versions v0 and v1 and points at v0; `plain` is a folder without a manifest."""
    store = Store(tmp_path / "store")
    store.publish(folders[1], "alpha")
    store.publish(folders[0], "alpha")
    put_plain(folders[0], store.root, "plain")
    return make_admission(tmp_path, base_folder)


@pytest.fixture
def many(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`a0` to `a3`, and two slots."""
    store = Store(tmp_path / "store")
    for number, folder in enumerate(folders):
        store.publish(folder, f"a{number}")
    return make_admission(tmp_path, base_folder, capacity=4)


def versions(admission: Admission) -> list[str]:
    """NAME@HASH of alpha, newest first."""
    return [move.version for move in reversed(admission.aliases.store.history("alpha"))]


async def test_a_swap_under_a_request(admission: Admission) -> None:
    old, new = versions(admission)
    table = admission.aliases.cache.models.lora_requests

    async def swap(request: Any) -> None:
        assert request.model == f"{old}:gated"
        mine = table[request.model]
        admission.aliases.store.alias("alpha", new)
        # The new version is not there yet: whoever asks is answered by the old one.
        engine_of(admission).may_load.clear()
        assert await answered(admission, "alpha") == old
        engine_of(admission).may_load.set()
        await settled(admission)
        assert await answered(admission, "alpha:gated") == f"{new}:gated"
        # This request's version is on its way out, but stays until the request is over.
        assert table[request.model] is mine
        assert set(engine_of(admission).loaded.values()) == {old, new}
        await admission.admit(request)  # vLLM asks twice
        assert request.model == f"{old}:gated"

    await answered(admission, "alpha:gated", swap)
    await settled(admission)
    assert list(engine_of(admission).loaded.values()) == [new]
    assert set(table) == {new, f"{new}:gated"}
    assert not admission.aliases.slots.busy
    store = admission.aliases.store
    # Read from the store itself, without a copy.
    assert engine_of(admission).paths[new] == str(store.path(store.resolve(new)))


async def test_a_version_that_does_not_load_changes_nothing(admission: Admission) -> None:
    old, new = versions(admission)
    assert await answered(admission, "alpha") == old
    engine_of(admission).refuses = "no room"
    with pytest.raises(AdapterError, match="no room"):
        await admission.aliases.move("alpha", new, lambda: pytest.fail("the alias moved"))
    assert admission.aliases.store.resolve("alpha").hash == old.partition("@")[2]
    # Moved by somebody else, who did not try it:
    admission.aliases.store.alias("alpha", new)
    for _ in range(3):
        assert await answered(admission, "alpha") == old
        await settled(admission)
    assert "no room" in (admission.aliases.refusal("alpha") or "")
    engine_of(admission).refuses = ""
    admission.aliases.store.alias("alpha", old)
    admission.aliases.store.alias("alpha", new)
    assert await answered(admission, "alpha") == old
    await settled(admission)
    # The same content is not tried again and again; asking by hand does.
    await admission.aliases.preload(new)
    assert new in engine_of(admission).loaded.values()


async def test_what_the_engine_could_not_load_is_tried_again_after_a_while(
    admission: Admission,
) -> None:
    refused = admission.aliases._refused
    engine_of(admission).refuses = "no room"
    with pytest.raises(AdapterError, match="no room"):
        await answered(admission, "alpha")
    engine_of(admission).refuses = ""
    with pytest.raises(AdapterError, match="no room"):
        await answered(admission, "alpha")
    refused["alpha"] = refused["alpha"]._replace(until=0.0)
    assert await answered(admission, "alpha") == versions(admission)[0]
    assert not refused


async def test_a_corrupt_version_behind_the_alias_changes_nothing(admission: Admission) -> None:
    old, new = versions(admission)
    store = admission.aliases.store
    assert await answered(admission, "alpha") == old
    store.alias("alpha", new)
    weights = store.root / "alpha" / new.partition("@")[2] / WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-8])
    assert await answered(admission, "alpha") == old
    await settled(admission)
    assert await answered(admission, "alpha") == old
    assert "cut short" in (admission.aliases.refusal("alpha") or "")


async def test_least_recently_used_go_and_pinned_stay(
    tmp_path: Path, base_folder: Path, folders: list[Path]
) -> None:
    store = Store(tmp_path / "store")
    for number in range(5):
        store.publish(folders[number % 4], f"a{number}")
    admission = make_admission(tmp_path, base_folder, capacity=3)

    def loaded() -> set[str]:
        return {version.partition("@")[0] for version in engine_of(admission).loaded.values()}

    for name in ("a0", "a1", "a2", "a3"):
        await answered(admission, name)
    assert loaded() == {"a1", "a2", "a3"}
    await admission.aliases.pin("a1", True)
    await answered(admission, "a4")
    assert loaded() == {"a1", "a3", "a4"}
    with pytest.raises(AdapterError, match="one must stay unpinned"):
        await admission.aliases.pin("a3", True)
    await admission.aliases.pin("a1", False)
    await answered(admission, "a0")
    await answered(admission, "a2")
    assert loaded() == {"a4", "a0", "a2"}
    admission.aliases.unload("a0")
    await settled(admission)
    assert loaded() == {"a4", "a2"}
    await answered(admission, "a0")
    assert loaded() == {"a4", "a0", "a2"}


@pytest.mark.parametrize(
    ("shares_slots", "waiting", "at_once"),
    [(False, 3, 1), (True, 1, 3)],  # where they share, one place stays for the next
)
async def test_gated_requests_of_many_adapters_share_the_slots(
    many: Admission, shares_slots: bool, waiting: int, at_once: int
) -> None:
    aliases = many.aliases
    aliases.slots.count, aliases.shares_slots = 1, shares_slots
    end = asyncio.Event()

    async def until_the_end(_: object) -> None:
        await end.wait()

    asked = [
        asyncio.create_task(answered(many, f"a{number}:gated", until_the_end))
        for number in range(4)
    ]
    async with asyncio.timeout(30):
        while aliases.slots.waiting + aliases.host_slots.waiting < waiting:
            await asyncio.sleep(0)
        while sum(one.in_flight for one in aliases.cache) + waiting < 4:
            await asyncio.sleep(0)
    assert sum(one.in_flight for one in aliases.cache) == at_once
    end.set()
    assert len(await asyncio.gather(*asked)) == 4
    assert not aliases.host_slots.busy


async def test_a_plain_folder_replaced_and_removed(
    admission: Admission, folders: list[Path]
) -> None:
    store = admission.aliases.store
    first = await answered(admission, "plain")
    assert str(store.resolve("plain")) == first
    assert not (store.root / "plain" / WEIGHTS).exists()  # in the version's folder now
    put_plain(folders[3], store.root, "plain")
    assert await answered(admission, "plain") == first
    await settled(admission)
    second = await answered(admission, "plain")
    assert second != first
    assert list(engine_of(admission).loaded.values()) == [second]
    assert store.rollback("plain").version == first
    assert await answered(admission, "plain") == second
    await settled(admission)
    assert await answered(admission, "plain") == first
    shutil.rmtree(store.root / "plain")
    with pytest.raises(KeyError):
        await answered(admission, "plain")
    await settled(admission)
    assert not engine_of(admission).loaded


async def test_a_broken_plain_folder_is_refused_and_what_served_serves_on(
    admission: Admission, folders: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    aliases = admission.aliases
    store = aliases.store
    never = put_plain(folders[2], store.root, "never")

    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])

    weights = load_file(never / WEIGHTS)
    save_file({key: value * np.nan for key, value in weights.items()}, never / WEIGHTS)

    first = await answered(admission, "plain")
    spoil(put_plain(folders[3], store.root, "plain"))
    for _ in range(3):
        assert await answered(admission, "plain") == first
        await settled(admission)
        with pytest.raises(AdapterError, match="NaN"):
            await answered(admission, "never")
    assert "cut short" in (aliases.refusal("plain") or "")
    assert aliases.refused() == ["plain", "never"] or aliases.refused() == ["never", "plain"]
    listing = await asyncio.to_thread(aliases.listing)
    assert list(listing.offered) == ["alpha", "plain"]  # the version before is sound
    assert list(listing.refused) == ["never"]
    # It is looked at once, until it changes.
    assert sum("refused" in record.message for record in caplog.records) == 2
    for name in ("never", "plain"):
        put_plain(folders[3], store.root, name)
    assert await answered(admission, "never")
    assert await answered(admission, "plain") == first
    await settled(admission)
    assert await answered(admission, "plain") != first
    assert aliases.refused() == []


@pytest.mark.parametrize(
    ("model", "arguments", "error"),
    [
        ("alpha:gated:gated", {}, KeyError),
        ("alpha:gated", {"gate_tau": -1}, ValueError),
        ("alpha:gated", {"gate_tau": 10**400}, ValueError),
        ("alpha:gated", {"gate_rate": 10**400}, ValueError),
        ("plain:gated", {}, ValueError),
        ("plain:gated", {"gate_rate": 0.1}, ValueError),
        ("alpha:gatedx", {}, KeyError),
        ("alpha@000000000000", {}, KeyError),
        ("../store/alpha", {}, KeyError),
        ("alpha", {"gate_tau": 1.0}, ValueError),
        ("base", {"gate_trace": 1}, ValueError),
    ],
)
async def test_a_refused_request_leaves_the_others_theirs(
    admission: Admission, model: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    async def refused(request: Any) -> None:
        with pytest.raises(error) as caught:
            await answered(admission, model, **arguments)
        assert all(str(caught.value).startswith(name) for name in arguments)
        assert request.model in admission.aliases.cache.models.lora_requests

    await answered(admission, "alpha:gated", refused)
    assert not admission.aliases.slots.busy
    assert all(one.in_flight == 0 for one in admission.aliases.cache)


async def test_many_at_once_load_once(admission: Admission) -> None:
    names = ["alpha", "alpha:gated", versions(admission)[0], "plain"] * 10
    await asyncio.gather(*(answered(admission, name) for name in names))
    assert sorted(engine_of(admission).loaded) == [1, 2]


async def test_a_threshold_set_by_hand(admission: Admission) -> None:
    admission.aliases.taus["alpha"] = 1.25
    for arguments, tau in (({}, 1.25), ({"gate_tau": 0.5}, 0.5)):
        request = completion("alpha:gated", **arguments)
        await admission.admit(request)
        assert request.vllm_xargs["gate_tau"] == tau


def pinned(admission: Admission) -> set[str]:
    """NAME@HASH that the engine has pinned."""
    return {engine_of(admission).loaded[number] for number in engine_of(admission).pinned}


async def test_a_version_that_comes_back_while_it_drains_is_pinned_no_more(
    admission: Admission,
) -> None:
    aliases = admission.aliases

    async def unload_and_ask_again(_: Any) -> None:
        aliases.unload("alpha")
        assert pinned(admission)  # until it goes
        version = await answered(admission, "alpha")
        assert version in engine_of(admission).loaded.values()
        assert not pinned(admission)  # else the engine had a slot less than is counted here

    await aliases.pin("alpha", True)
    await answered(admission, "alpha", unload_and_ask_again)
    assert not aliases.slots.pinned


async def test_a_pin_waits_for_a_slot_and_two_pins_leave_one(many: Admission) -> None:
    aliases = many.aliases
    end = asyncio.Event()

    async def until_the_end(_: Any) -> None:
        await end.wait()

    asked = [asyncio.create_task(answered(many, f"a{n}", until_the_end)) for n in (0, 1)]
    while sum(one.in_flight for one in aliases.cache) < 2:
        await asyncio.sleep(0)
    first = asyncio.create_task(aliases.pin("a2", True))
    while not aliases.slots.waiting:
        await asyncio.sleep(0)
    assert not pinned(many)  # the engine runs two adapters in its two slots
    with pytest.raises(AdapterError, match="one must stay unpinned"):
        await aliases.pin("a3", True)
    end.set()
    await asyncio.gather(first, *asked)
    assert pinned(many) == aliases.slots.pinned == {aliases.serving("a2")}
    assert not aliases.slots.busy and not aliases._pinning


async def test_what_is_unloaded_while_it_is_pinned_keeps_no_slot(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = engine_of(admission).collective_rpc

    async def unloaded_meanwhile(method: str, args: tuple[Any, ...] = ()) -> Any:
        found = await call(method, args)
        if method == "pin_adapter":
            admission.aliases.unload("alpha")
        return found

    monkeypatch.setattr(engine_of(admission), "collective_rpc", unloaded_meanwhile)

    with pytest.raises(AdapterError, match="was replaced meanwhile"):
        await admission.aliases.pin("alpha", True)
    await settled(admission)
    assert not admission.aliases.slots.pinned
    assert not engine_of(admission).loaded and not engine_of(admission).pinned


async def test_a_pin_goes_with_the_alias(admission: Admission) -> None:
    old, new = versions(admission)
    aliases = admission.aliases
    await aliases.pin("alpha", True)
    assert pinned(admission) == {old}
    await aliases.move("alpha", new, lambda: aliases.store.alias("alpha", new))
    await settled(admission)
    assert pinned(admission) == aliases.slots.pinned == {new}
    assert set(engine_of(admission).loaded.values()) == {new}
    await aliases.pin("alpha", False)
    assert not aliases.slots.pinned and not pinned(admission)


@pytest.mark.parametrize("by", ["follower", "request"])
async def test_a_pin_goes_with_what_is_deleted_from_the_store(many: Admission, by: str) -> None:
    aliases = many.aliases
    store = aliases.store
    store.alias("other", str(store.resolve("a0")))
    await aliases.pin("a0", True)
    await answered(many, "other")
    (store.root / "other" / "moves.jsonl").unlink()
    await aliases.follow()
    assert aliases.slots.pinned == pinned(many) == {aliases.serving("a0")}  # it still serves a0
    shutil.rmtree(store.root / "a0")
    if by == "follower":
        await aliases.follow()
    else:
        with pytest.raises(KeyError):
            await answered(many, "a0")
    await settled(many)
    assert not aliases.slots.pinned and not aliases.host_slots.pinned
    assert aliases.slots.in_use == 0
    assert not engine_of(many).loaded and not engine_of(many).pinned


async def test_a_slot_that_is_unpinned_goes_to_who_waits(many: Admission) -> None:
    aliases = many.aliases
    await aliases.pin("a0", True)

    async def ask_for_another(_: Any) -> None:
        waits = asyncio.create_task(answered(many, "a2"))
        while not aliases.slots.waiting:
            await asyncio.sleep(0)
        await aliases.pin("a0", False)
        await waits

    await answered(many, "a1", ask_for_another)


async def test_a_client_that_hangs_up_leaves_no_half_of_a_load(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = admission.aliases.cache
    store = admission.aliases.store
    reads, goes_on = threading.Event(), threading.Event()
    read = cache._read

    def slow_read(version: str, asked: str) -> Any:
        found = read(version, asked)  # with a lease
        reads.set()
        assert goes_on.wait(60)
        return found

    monkeypatch.setattr(cache, "_read", slow_read)

    asked = asyncio.create_task(answered(admission, "alpha"))
    while not reads.is_set():
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    goes_on.set()
    await settled(admission)
    # What the engine holds is what the table names; so it can be found, used and dropped.
    assert set(engine_of(admission).loaded.values()) == {one.version for one in cache}
    version = await answered(admission, "alpha")
    assert list(engine_of(admission).loaded.values()) == [version]
    admission.aliases.unload("alpha")
    await settled(admission)
    assert not engine_of(admission).loaded
    held = Lease.take_alone(store.path(store.resolve(version)))
    assert held is not None  # nobody's lease is left
    held.close()


async def test_a_version_that_was_replaced_while_it_was_waited_for_goes(
    admission: Admission,
) -> None:
    old, new = versions(admission)
    aliases = admission.aliases

    async def swap(_: Any) -> None:
        waits = asyncio.create_task(answered(admission, "alpha"))
        while not aliases.slots.waiting:
            await asyncio.sleep(0)
        await aliases.move("alpha", new, lambda: aliases.store.alias("alpha", new))
        aliases.slots.unpin("filler@000000000000")
        assert await waits == old

    assert await answered(admission, "alpha") == old
    # Both slots are taken by others.
    aliases.slots.pinned.add("filler@000000000000")
    await answered(admission, "plain", swap)
    await settled(admission)
    assert old not in engine_of(admission).loaded.values()
    assert new in engine_of(admission).loaded.values()


async def test_a_name_that_is_withdrawn_while_it_moves_stays_so(admission: Admission) -> None:
    _, new = versions(admission)
    aliases = admission.aliases
    await answered(admission, "alpha")
    aliases.store.alias("alpha", new)
    engine_of(admission).may_load.clear()
    await answered(admission, "alpha")  # begins the move
    aliases.withdraw("alpha")
    engine_of(admission).may_load.set()
    await settled(admission)
    with pytest.raises(KeyError):
        await answered(admission, "alpha")
    assert not engine_of(admission).loaded
    assert not aliases.served()


async def test_who_waits_for_a_slot_while_the_server_begins_to_shut_down_is_sent_away(
    many: Admission,
) -> None:
    """The engine would give an empty answer, as if it had ended."""
    slots = many.aliases.slots
    slots.pinned |= {"filler@000000000000", "another@000000000000"}
    waits = asyncio.create_task(many.check(BaseServing, completion("a0")))  # type: ignore[arg-type]
    while not slots.waiting:
        await asyncio.sleep(0)
    many.drain.begun = True
    slots.unpin("filler@000000000000")
    refusal = await waits
    assert refusal is not None
    assert refusal.error.code == 503
    assert not slots.busy


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_what_asks_for_no_token_needs_no_adapter_in_the_engine(
    many: Admission, path: str
) -> None:
    many.aliases.slots.pinned |= {"filler@000000000000", "another@000000000000"}
    for model in ("base", "a0", "a0:gated"):
        assert await answered(many, model, path=path) == "base"
    assert not engine_of(many).loaded
    with pytest.raises(KeyError):
        await answered(many, "nobody", path=path)


def waits_counted() -> float:
    (metric,) = QUEUE_SECONDS.collect()
    return next(one.value for one in metric.samples if one.name.endswith("_count"))


@pytest.mark.parametrize("model", ["alpha", "alpha:gated"])
def test_a_request_waits_once(admission: Admission, model: str) -> None:
    before = waits_counted()
    asyncio.run(answered(admission, model))
    assert waits_counted() == before + 1
