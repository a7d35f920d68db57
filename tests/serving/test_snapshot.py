"""Frozen copies: one content, one version; what was checked is what is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import make_adapter

from adapters.adapter import WEIGHTS, AdapterError, AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.store import Store
from serving.snapshot import Snapshots


@pytest.fixture
def base(base_folder: Path) -> BaseCheckpoint:
    return BaseCheckpoint.open(str(base_folder))


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    (tmp_path / "snapshots").mkdir()
    return Snapshots(tmp_path / "snapshots")


def test_a_version_is_its_content(
    tmp_path: Path, base: BaseCheckpoint, snapshots: Snapshots
) -> None:
    store = Store(tmp_path / "store")
    folder = make_adapter(store.root, "alpha", base.folder, seed=1)
    first = snapshots.take(store, "alpha", base, 64)
    assert first.version.startswith("alpha@")
    assert (first.path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    before = store.signature("alpha")
    assert store.signature("alpha") == before

    shutil.rmtree(folder)
    make_adapter(store.root, "alpha", base.folder, seed=2)
    assert store.signature("alpha") != before
    second = snapshots.take(store, "alpha", base, 64)
    assert second.version != first.version
    shutil.rmtree(folder)
    make_adapter(store.root, "alpha", base.folder, seed=1)
    assert snapshots.take(store, "alpha", base, 64) == first
    assert sorted(os.listdir(snapshots.root)) == sorted([first.version, second.version])


def test_signature_sees_a_rewrite_of_equal_length(tmp_path: Path, base_folder: Path) -> None:
    store = Store(tmp_path)
    folder = make_adapter(store.root, "alpha", base_folder)
    before = store.signature("alpha")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert store.signature("alpha") != before


def test_nothing_is_kept_of_a_refused_adapter(
    tmp_path: Path, base: BaseCheckpoint, snapshots: Snapshots
) -> None:
    store = Store(tmp_path / "store")
    make_adapter(store.root, "large", base.folder, rank=16)
    with pytest.raises(AdapterError, match="rank 16"):
        snapshots.take(store, "large", base, 8)
    with pytest.raises(KeyError):
        snapshots.take(store, "absent", base, 8)
    assert os.listdir(snapshots.root) == []


def test_a_folder_rewritten_during_the_copy_is_refused(
    tmp_path: Path, base: BaseCheckpoint, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    folder = make_adapter(store.root, "alpha", base.folder, manifest=False)
    copy = AdapterVersion.copy_to

    def rewriting_copy(version: AdapterVersion, *arguments: Any) -> None:
        copy(version, *arguments)
        (folder / WEIGHTS).touch()

    monkeypatch.setattr(AdapterVersion, "copy_to", rewriting_copy)
    with pytest.raises(AdapterError, match="being rewritten"):
        snapshots.take(store, "alpha", base, 64)
    assert os.listdir(snapshots.root) == []


def test_a_version_is_frozen_under_its_own_name(
    tmp_path: Path, base: BaseCheckpoint, snapshots: Snapshots
) -> None:
    store = Store(tmp_path / "store")
    folder = make_adapter(tmp_path, "made", base.folder)
    version = store.publish(folder, "alpha", base=base)
    store.alias("latest", version.id)
    assert snapshots.take(store, "latest", base, 64).version == version.id
    weights = version.path / WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(
        (make_adapter(tmp_path, "other", base.folder, seed=9) / WEIGHTS).read_bytes()
    )
    with pytest.raises(AdapterError, match="hash"):
        snapshots.take(store, "latest", base, 64)
    assert os.listdir(snapshots.root) == [version.id]
