"""A plain folder becomes a version once it is complete; several servers may find it at once."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fleet import answered, make_admission, put_plain
from support import sign

from adapters.adapter import CONFIG, AdapterError
from adapters.audit import verify
from adapters.store import Store
from serving import plain_folders
from serving.plain_folders import PlainFolders, UnfinishedError


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.sleeps: list[float] = []

    def time(self) -> float:
        return time.time() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.ahead += seconds
        self.during()

    def during(self) -> None:
        """What others do meanwhile."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(
        plain_folders, "time", SimpleNamespace(time=clock.time, monotonic=clock.time)
    )
    loop = SimpleNamespace(to_thread=asyncio.to_thread, sleep=clock.sleep)
    monkeypatch.setattr(plain_folders, "asyncio", loop)
    monkeypatch.setattr(plain_folders, "QUIET", 1.0)
    return clock


async def test_a_folder_that_is_still_written_is_waited_for(
    tmp_path: Path, base_folder: Path, folders: list[Path], clock: Clock
) -> None:
    store = Store(tmp_path / "store")
    folder = put_plain(folders[0], store.root, "alpha")

    def copied_on() -> None:
        if len(clock.sleeps) == 1:
            sign(folder, base_folder)

    clock.during = copied_on  # type: ignore[method-assign]
    with pytest.raises(UnfinishedError, match="being written"):
        PlainFolders(store).adopt("alpha")  # in a thread nobody waits
    assert store.names() == ["alpha"] and not clock.sleeps
    await PlainFolders(store).adopt_when_quiet("alpha")
    assert store.get("alpha").gate is not None  # the manifest, which came last, is in it
    assert not (folder / CONFIG).exists()
    assert len(clock.sleeps) >= 1 and max(clock.sleeps) <= 1.0
    assert store.history("alpha")[0].by == plain_folders.BY
    assert verify(store) == []


async def test_it_is_not_waited_for_without_end(
    tmp_path: Path, folders: list[Path], clock: Clock
) -> None:
    store = Store(tmp_path / "store")
    put_plain(folders[0], store.root, "alpha")
    found = store.plain("alpha")
    assert found is not None
    never_quiet = SimpleNamespace(
        plain=lambda _: found._replace(changed=int(clock.time() * 1e9)), reached=store.reached
    )
    with pytest.raises(AdapterError, match="being written"):
        await PlainFolders(never_quiet).adopt_when_quiet("alpha")  # type: ignore[arg-type]
    assert sum(clock.sleeps) > plain_folders.PATIENCE - 1


def test_a_store_that_cannot_be_written_says_so_and_is_tried_again(
    tmp_path: Path, folders: list[Path], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    put_plain(folders[0], store.root, "alpha")
    clock.ahead = 10.0

    def full(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    server = PlainFolders(store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(AdapterError, match=r"folder, and .* Read-only .*; make it writable"):
            server.adopt("alpha")
    with pytest.raises(AdapterError, match="Read-only"):
        server.adopt("alpha")  # not at every request
    clock.ahead += plain_folders.RETRY + 1
    server.adopt("alpha")
    assert store.resolve("alpha").hash is not None and server.refused() == []


async def test_many_find_it_at_once(tmp_path: Path, folders: list[Path]) -> None:
    store = Store(tmp_path / "store")
    names = [put_plain(folder, store.root, f"a{n}").name for n, folder in enumerate(folders)]
    servers = [PlainFolders(store) for _ in range(3)]

    async def find(server: PlainFolders) -> None:
        for name in names:
            await server.adopt_when_quiet(name)

    await asyncio.gather(*map(find, servers * 2))
    assert [len(store.history(name)) for name in names] == [1] * 4
    assert all(store.plain(name) is None for name in names)
    assert verify(store) == []


async def test_a_listing_waits_for_no_folder_that_is_written_or_adopted(
    tmp_path: Path, base_folder: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    store.publish(folders[0], "alpha")
    admission = make_admission(tmp_path, base_folder)
    aliases = admission.aliases
    put_plain(folders[1], store.root, "new")

    async def refused() -> str:
        listing = await asyncio.wait_for(asyncio.to_thread(aliases.listing), 30)
        assert list(listing.offered) == ["alpha"]
        return listing.refused["new"].reason

    def slept(seconds: float) -> None:
        raise AssertionError("a thread sleeps, which others may need")

    with monkeypatch.context() as patch:
        patch.setattr(plain_folders, "QUIET", 3600.0)
        patch.setattr(time, "sleep", slept)
        assert "being written" in await refused()
    begun, goes_on = threading.Event(), threading.Event()
    adopt = store.adopt

    def slowly(name: str, *, by: str) -> object:
        begun.set()
        assert goes_on.wait(60)
        return adopt(name, by=by)

    monkeypatch.setattr(aliases.store, "adopt", slowly)
    asked = asyncio.create_task(answered(admission, "new"))
    try:
        await asyncio.to_thread(begun.wait, 60)
        assert "being written" in await refused()
    finally:
        goes_on.set()
    assert (await asked).startswith("new@")
    listing = await asyncio.to_thread(aliases.listing)
    assert list(listing.offered) == ["alpha", "new"]
