"""What garbage collection of a folder leaves alone: whatever a link leads to, and what is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny import make_adapter

from adapters.adapter import CONFIG
from adapters.audit import verify
from adapters.collect import collect
from adapters.files import remove_tree
from adapters.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With one version of `alpha`."""
    store = Store(tmp_path / "store")
    store.publish(make_adapter(tmp_path / "source"), "alpha")
    return store


@pytest.mark.parametrize("name", [".trash-1", ".tmp-1"])
def test_what_a_link_leads_to_is_not_deleted(store: Store, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (store.root / "alpha" / name).symlink_to(outside)
    assert collect(store, grace=0) == []
    assert os.listdir(outside) == ["file"]
    assert not os.path.lexists(store.root / "alpha" / name)


def test_a_tree_is_removed_and_links_in_it_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "tree" / "below" / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")  # which is gone
    assert os.listdir(tmp_path) == ["kept"]


def test_a_new_adapter_that_is_being_copied_in_is_left_alone(store: Store, tmp_path: Path) -> None:
    home = store.root / "alpha"
    shutil.copy(tmp_path / "source" / CONFIG, home)  # as the last version has it; weights follow
    collect(store)
    assert (home / CONFIG).is_file()
    collect(store, grace=0)  # as if it had lain there for long
    assert not (home / CONFIG).exists()
    assert verify(store) == []
