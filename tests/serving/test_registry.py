"""A request keeps its version to the end; versions come and go around it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fleet import Engine, answered, completion, make_modes, settled
from support import make_adapter

from adapters.adapter import WEIGHTS, AdapterError
from adapters.store import Store
from serving.modes import Modes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> list[Path]:
    """Adapters of different content."""
    place = tmp_path_factory.mktemp("folders")
    return [make_adapter(place, f"v{seed}", base_folder, seed=seed) for seed in range(4)]


@pytest.fixture
def modes(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Modes:
    """`alpha` has versions v0 and v1 and points at v0; `plain` is a folder without a manifest."""
    store = Store(tmp_path / "store")
    store.publish(folders[1], "alpha")
    store.publish(folders[0], "alpha")
    make_adapter(store.root, "plain", base_folder, manifest=False)
    return make_modes(tmp_path, base_folder)


def engine(modes: Modes) -> Engine:
    found: Any = modes.registry.residents.engine
    return found


def versions(modes: Modes) -> list[str]:
    """NAME@HASH of alpha, newest first."""
    return [move.version for move in reversed(modes.registry.store.history("alpha"))]


async def nothing(_: Any) -> None: ...


def test_a_swap_under_a_request(modes: Modes) -> None:
    old, new = versions(modes)
    table = modes.registry.residents.models.lora_requests

    async def story() -> None:
        async def swap(request: Any) -> None:
            assert request.model == f"{old}:gated"
            mine = table[request.model]
            modes.registry.store.alias("alpha", new)
            # The new version is not there yet: whoever asks is answered by the old one.
            engine(modes).may_load.clear()
            assert await answered(modes, "alpha", nothing) == old
            engine(modes).may_load.set()
            await settled(modes)
            assert await answered(modes, "alpha:gated", nothing) == f"{new}:gated"
            # This request's version is on its way out, but stays until the request is over.
            assert table[request.model] is mine
            assert set(engine(modes).loaded.values()) == {old, new}
            await modes.admit(request)  # vLLM asks twice
            assert request.model == f"{old}:gated"

        await answered(modes, "alpha:gated", swap)
        await settled(modes)

    asyncio.run(story())
    assert list(engine(modes).loaded.values()) == [new]
    assert set(table) == {new, f"{new}:gated"}
    assert not modes.registry.slots.busy
    frozen = modes.registry.residents.snapshots.root
    assert [folder.name for folder in frozen.iterdir()] == [new]


def test_a_version_that_does_not_load_changes_nothing(modes: Modes) -> None:
    old, new = versions(modes)

    async def story() -> None:
        assert await answered(modes, "alpha", nothing) == old
        engine(modes).refuses = "no room"
        with pytest.raises(AdapterError, match="no room"):
            await modes.registry.move("alpha", new, lambda: pytest.fail("the alias moved"))
        assert modes.registry.store.resolve("alpha").hash == old.partition("@")[2]
        # Moved by somebody else, who did not try it:
        modes.registry.store.alias("alpha", new)
        for _ in range(3):
            assert await answered(modes, "alpha", nothing) == old
            await settled(modes)
        assert "no room" in (modes.registry.refusal("alpha") or "")
        engine(modes).refuses = ""
        modes.registry.store.alias("alpha", old)
        modes.registry.store.alias("alpha", new)
        assert await answered(modes, "alpha", nothing) == old
        await settled(modes)
        # The same content is not tried again and again; asking by hand does.
        await modes.registry.preload(new)
        assert new in engine(modes).loaded.values()

    asyncio.run(story())


def test_a_corrupt_version_behind_the_alias_changes_nothing(modes: Modes) -> None:
    old, new = versions(modes)
    store = modes.registry.store

    async def story() -> None:
        assert await answered(modes, "alpha", nothing) == old
        store.alias("alpha", new)
        weights = store.root / "alpha" / new.partition("@")[2] / WEIGHTS
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-8])
        assert await answered(modes, "alpha", nothing) == old
        await settled(modes)
        assert await answered(modes, "alpha", nothing) == old

    asyncio.run(story())
    assert "cut short" in (modes.registry.refusal("alpha") or "")


def test_least_recently_used_go_and_pinned_stay(
    tmp_path: Path, base_folder: Path, folders: list[Path]
) -> None:
    store = Store(tmp_path / "store")
    for number in range(5):
        store.publish(folders[number % 4], f"a{number}")
    modes = make_modes(tmp_path, base_folder, capacity=3)

    async def story() -> None:
        def loaded() -> set[str]:
            return {version.partition("@")[0] for version in engine(modes).loaded.values()}

        for name in ("a0", "a1", "a2", "a3"):
            await answered(modes, name, nothing)
        assert loaded() == {"a1", "a2", "a3"}
        await modes.registry.pin("a1", True)
        await answered(modes, "a4", nothing)
        assert loaded() == {"a1", "a3", "a4"}
        with pytest.raises(AdapterError, match="one must stay unpinned"):
            await modes.registry.pin("a3", True)
        await modes.registry.pin("a1", False)
        await answered(modes, "a0", nothing)
        await answered(modes, "a2", nothing)
        assert loaded() == {"a4", "a0", "a2"}
        modes.registry.unload("a0")
        await settled(modes)
        assert loaded() == {"a4", "a2"}
        await answered(modes, "a0", nothing)
        assert loaded() == {"a4", "a0", "a2"}


def test_gated_requests_of_many_adapters_share_the_slots(
    tmp_path: Path, base_folder: Path, folders: list[Path]
) -> None:
    store = Store(tmp_path / "store")
    for number in range(4):
        store.publish(folders[number], f"a{number}")

    def in_use_at_once(shares_slots: bool, waiting: int) -> int:
        """With `waiting` of four requests held back."""
        work = tmp_path / str(shares_slots)
        work.mkdir()
        (work / "store").symlink_to(store.root)
        modes = make_modes(work, base_folder, capacity=4, slots=1)
        registry = modes.registry
        registry.shares_slots = shares_slots

        async def story() -> int:
            end = asyncio.Event()

            async def until_the_end(_: object) -> None:
                await end.wait()

            asked = [
                asyncio.create_task(answered(modes, f"a{number}:gated", until_the_end))
                for number in range(4)
            ]
            async with asyncio.timeout(30):
                while registry.slots.waiting + registry.places.waiting < waiting:
                    await asyncio.sleep(0)
                while sum(one.in_flight for one in registry.residents) + waiting < 4:
                    await asyncio.sleep(0)
            most = sum(one.in_flight for one in registry.residents)
            end.set()
            assert len(await asyncio.gather(*asked)) == 4
            assert not registry.places.busy
            return most

        return asyncio.run(story())

    assert in_use_at_once(shares_slots=False, waiting=3) == 1
    assert in_use_at_once(shares_slots=True, waiting=1) == 3  # one place stays for the next


def test_a_plain_folder_replaced_and_removed(modes: Modes, base_folder: Path) -> None:
    store = modes.registry.store

    async def story() -> None:
        first = await answered(modes, "plain", nothing)
        make_adapter(store.root, "plain", base_folder, manifest=False, seed=9)
        assert await answered(modes, "plain", nothing) == first
        await settled(modes)
        second = await answered(modes, "plain", nothing)
        assert second != first
        assert list(engine(modes).loaded.values()) == [second]
        shutil.rmtree(store.root / "plain")
        with pytest.raises(KeyError):
            await answered(modes, "plain", nothing)
        await settled(modes)
        assert not engine(modes).loaded

    asyncio.run(story())
    assert os.listdir(modes.registry.residents.snapshots.root) == []


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
def test_a_refused_request_leaves_the_others_theirs(
    modes: Modes, model: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    async def story() -> None:
        async def refused(request: Any) -> None:
            with pytest.raises(error) as caught:
                await answered(modes, model, nothing, **arguments)
            assert all(str(caught.value).startswith(name) for name in arguments)
            assert request.model in modes.registry.residents.models.lora_requests

        await answered(modes, "alpha:gated", refused)

    asyncio.run(story())
    assert not modes.registry.slots.busy
    assert all(one.in_flight == 0 for one in modes.registry.residents)


def test_many_at_once_load_once(modes: Modes) -> None:
    async def story() -> None:
        names = ["alpha", "alpha:gated", versions(modes)[0], "plain"] * 10
        await asyncio.gather(*(answered(modes, name, nothing) for name in names))
        assert sorted(engine(modes).loaded) == [1, 2]

    asyncio.run(story())


def test_a_threshold_set_by_hand(modes: Modes) -> None:
    async def story() -> None:
        modes.registry.taus["alpha"] = 1.25
        for arguments, tau in (({}, 1.25), ({"gate_tau": 0.5}, 0.5)):
            request = completion("alpha:gated", **arguments)
            await modes.admit(request)
            assert request.vllm_xargs["gate_tau"] == tau

    asyncio.run(story())
