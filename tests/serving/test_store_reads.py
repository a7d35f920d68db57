"""What the server reads of the store: an adapter once a swap, and nothing on the event loop."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fleet import BEARER, answered, application, engine_of, make_admission, put_plain, settled
from safetensors.numpy import load_file, save_file
from support import make_adapter

from adapters.adapter import WEIGHTS
from adapters.store import Store
from serving import admin_api, models_api
from serving.admission import Admission


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> list[Path]:
    """Two adapters of all layers at rank 64, of different content."""
    place = tmp_path_factory.mktemp("folders")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [
        make_adapter(
            place, f"v{seed}", base_folder, seed=seed, rank=64, targets=targets, manifest=False
        )
        for seed in range(2)
    ]


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`alpha` has two versions and points at the second."""
    store = Store(tmp_path / "store")
    for folder in folders:
        store.publish(folder, "alpha")
    return make_admission(tmp_path, base_folder)


def client(admission: Admission) -> httpx.AsyncClient:
    """A client of the routes that read the store, in this event loop."""
    app = application(admission, admin_api.router, models_api.router)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server", headers=BEARER
    )


# ------------------------------------------------------------------------------------ how often


class Bytes:
    """Bytes that this process has read and written, as a share of an adapter's weights."""

    def __init__(self, folder: Path) -> None:
        self.size = (folder / WEIGHTS).stat().st_size
        self.before = self._now()

    @staticmethod
    def _now() -> tuple[int, int]:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"]), int(fields["wchar"])

    def shares(self) -> tuple[float, float]:
        """(read, written) since the start."""
        now = self._now()
        read, written = (after - before for after, before in zip(now, self.before, strict=True))
        return read / self.size, written / self.size


@contextmanager
def hashed(least: float) -> Iterator[Counter[str]]:
    """Count the digests of `least` bytes or more."""
    seen: Counter[str] = Counter()
    real = hashlib.sha256

    class Counting:
        def __init__(self, data: bytes = b"") -> None:
            self._real, self._count = real(data), len(data)

        def update(self, data: bytes) -> None:
            self._real.update(data)
            self._count += len(data)

        def __getattr__(self, name: str) -> Any:
            if name in ("hexdigest", "digest") and self._count >= least:
                seen["large"] += 1
            return getattr(self._real, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "sha256", Counting)
        yield seen


async def test_a_swap_reads_and_hashes_the_adapter_once_and_copies_nothing(
    admission: Admission, folders: list[Path]
) -> None:
    first = admission.aliases.store.history("alpha")[0].version
    async with client(admission) as admin:
        assert await answered(admission, "alpha") != first
        counted = Bytes(folders[0])
        with hashed(0.9 * counted.size) as large:
            answer = await admin.post("/admin/adapters/alpha/alias", json={"version": first})
        read, written = counted.shares()
        assert answer.json()["serving"] == first, answer.text
        assert large["large"] == 1
        assert 0.9 < read < 1.5 and written < 0.2
        assert first in engine_of(admission).loaded.values()
        await settled(admission)


@pytest.mark.parametrize("plain", [False, True], ids=["version", "plain folder"])
async def test_a_first_use_reads_and_hashes_the_adapter_once(
    admission: Admission, folders: list[Path], plain: bool
) -> None:
    store = admission.aliases.store
    if plain:
        folder = put_plain(folders[0], store.root, "plain")
        weights = load_file(folder / WEIGHTS)
        save_file({key: np.negative(x) for key, x in weights.items()}, folder / WEIGHTS)
    counted = Bytes(folders[0])
    with hashed(0.9 * counted.size) as large:
        version = await answered(admission, "plain" if plain else "alpha")
    read, written = counted.shares()
    assert "@" in version
    assert large["large"] == 1
    assert 0.9 < read < 1.5
    assert (0.9 < written < 1.2) if plain else written < 0.2  # copied once, or not at all
    # A second request, another name of it and a listing read no weights.
    again = Bytes(folders[0])
    assert await answered(admission, version) == version
    await asyncio.to_thread(admission.aliases.listing)
    assert again.shares()[0] < 0.5


# ------------------------------------------------------------------------------------- in threads


@contextmanager
def no_disk_on_this_thread(store: Path) -> Iterator[list[str]]:
    """List what this thread asks of the file system about `store`."""
    mine, asked = threading.get_ident(), list[str]()

    def guarded(name: str, real: Any) -> Any:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if threading.get_ident() == mine and text.startswith(str(store)):
                asked.append(f"{name}({text})")
            return real(path, *args, **kwargs)

        return call

    functions = [(os, one) for one in ("open", "stat", "lstat", "listdir", "scandir", "access")]
    functions += [(os, one) for one in ("mkdir", "rename", "replace", "unlink", "readlink")]
    functions += [(builtins, "open"), (io, "open")]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in functions:
            patch.setattr(module, name, guarded(name, getattr(module, name)))
        yield asked


def test_the_guard_sees_what_a_store_does(admission: Admission) -> None:
    store = admission.aliases.store
    with no_disk_on_this_thread(store.root) as asked:
        store.get("alpha")
    assert {one.partition("(")[0] for one in asked} >= {"open", "stat"}
    with no_disk_on_this_thread(store.root) as asked:
        asyncio.run(asyncio.to_thread(store.get, "alpha"))
    assert asked == []


async def test_no_request_reads_the_store_on_the_event_loop(
    admission: Admission, folders: list[Path]
) -> None:
    store = admission.aliases.store
    newest, before = (move.version for move in reversed(store.history("alpha")))
    put_plain(folders[0], store.root, "plain")
    (store.root / "broken").mkdir()
    (store.root / "broken" / "adapter_config.json").write_text("{")

    async def ask(model: str) -> str:
        try:
            return await answered(admission, model)
        except (KeyError, ValueError) as error:
            return type(error).__name__

    with no_disk_on_this_thread(store.root) as read:
        async with client(admission) as user:
            for model in ("alpha", "alpha", before, "plain"):
                assert "@" in await ask(model)
            assert await ask("nobody") == "KeyError"
            assert await ask("broken") == "AdapterError"
            for method, path, body in (
                ("GET", "/v1/models", None),
                ("GET", f"/v1/models/{newest}", None),
                ("GET", "/admin/adapters", None),
                ("GET", "/admin/adapters/plain", None),
                ("POST", "/admin/adapters/alpha/load", {}),
                ("POST", "/admin/adapters/alpha/alias", {"version": before}),
                ("POST", "/admin/adapters/alpha/rollback", None),
                ("PUT", "/admin/adapters/alpha/tau", {"tau": 0.5}),
                ("POST", "/admin/adapters/alpha/pin", {"pinned": True}),
                ("POST", "/admin/adapters/alpha/pin", {"pinned": False}),
                ("POST", "/admin/adapters/plain/unload", None),
                ("POST", "/admin/adapters/nobody/unload", None),
            ):
                answer = await user.request(method, path, json=body)
                assert answer.status_code == (404 if "nobody" in path else 200), answer.text
            # Moved by somebody else, at a request.
            await asyncio.to_thread(store.alias, "alpha", before)
            await ask("alpha")
            await settled(admission)
            assert await ask("alpha") == before
    assert read == []
