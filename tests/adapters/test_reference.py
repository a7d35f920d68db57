"""NAME and NAME@HASH: what is one, and that nothing else ever touches the disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny import contents, make_adapter

from adapters.adapter import WEIGHTS
from adapters.manifest import is_name
from adapters.reference import Reference, is_hash
from adapters.store import Store

HASH = "0123456789ab"
PARTS = st.sampled_from(
    [
        *("..", ".", "/", "\\", "~", "%2e%2e", "%2f", "\x00", "\n", "\r", "\t", " ", "@", ":", "*"),
        *("alpha", "a", "A", "é", "ａ", "․․", "／", "\u202e", "\ud800", "-", "_", "0"),
        *(HASH, f"@{HASH}"),
        *("C:", "file://", "/etc/passwd", ".tmp-", ".lock", "moves.jsonl", "a" * 300),
    ]
)
HOSTILE = st.lists(PARTS | st.text(max_size=4), min_size=1, max_size=6).map("".join)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True).filter(
    lambda name: ".." not in name
)
HASHES = st.text("0123456789abcdef", min_size=12, max_size=12)


@given(NAMES, st.none() | HASHES)
def test_what_is_written_is_what_is_read(name: str, digest: str | None) -> None:
    reference = Reference(name, digest)
    assert Reference.parse(str(reference)) == reference
    for wrong in ("{}\n", " {}", "{}@", "@{}", "{}/"):
        with pytest.raises(ValueError, match="neither NAME nor NAME@HASH"):
            Reference.parse(wrong.format(reference))


@settings(max_examples=1000)
@given(HOSTILE)
@example("a" * 65)
@example(f"alpha@{HASH}\n")
@example(f"alpha@{HASH.upper()}")
@example(f"alpha@{HASH}@{HASH}")
@example("alpha@٠١٢٣٤٥٦٧٨٩ab")
def test_only_safe_text_is_a_reference(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)
        assert not is_name(text)
        return
    assert str(reference) == text
    assert re.fullmatch(r"[a-z0-9._-]{1,64}(@[0-9a-f]{12})?", text)
    assert ".." not in text and text[0].isalnum() and text[-1].isalnum()
    assert is_name(reference.name) and (reference.hash is None or is_hash(reference.hash))


class Watch:
    """The paths that the process opens, lists, makes, renames or removes while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.paths: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple) -> None:
        if self.on and (event == "open" or event.startswith("os.")):
            self.paths += [str(arg) for arg in args if isinstance(arg, str | os.PathLike)]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a sibling folder that a traversal would find."""
    folder = tmp_path_factory.mktemp("around")
    make_adapter(folder / "outside")
    store = Store(folder / "store")
    store.publish(make_adapter(folder / "alpha"), "alpha")
    return store


@settings(max_examples=500, deadline=None)
@given(HOSTILE)
@example("../outside")
@example("alpha/../../outside")
@example("alpha@../../outside")
@example(f"alpha@{HASH}")
def test_a_hostile_name_changes_nothing_and_looks_at_nothing_outside(
    prepared: Store, watch: Watch, name: str
) -> None:
    assume(name != "alpha")
    before = contents(prepared.root.parent)
    watch.paths.clear()
    watch.on = True
    try:
        for ask in (prepared.resolve, prepared.get, prepared.lease):
            with pytest.raises(KeyError):
                ask(name)
        assert prepared.plain(name) is None and prepared.adopt(name) is None
        with pytest.raises((KeyError, ValueError)):
            prepared.rollback(name)
        with pytest.raises((KeyError, ValueError)):
            prepared.alias("alpha", name)
        if not is_name(name):
            with pytest.raises(ValueError, match="is not a name"):
                prepared.publish(prepared.root.parent / "outside", name)
            with pytest.raises(ValueError, match="is not a name"):
                prepared.alias(name, str(prepared.resolve("alpha")))
            assert prepared.versions(name) == []
    finally:
        watch.on = False
    inside = str(prepared.root)
    assert all(path.startswith(inside) and ".." not in path for path in watch.paths)
    assert contents(prepared.root.parent) == before


def test_links_are_neither_followed_out_nor_written_through(tmp_path: Path) -> None:
    outside = make_adapter(tmp_path / "outside")
    store = Store(tmp_path / "store")
    version = store.publish(outside, "alpha")
    before = contents(outside)
    (store.root / "linked").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link"):
        store.publish(outside, "linked")
    shutil.copytree(outside, store.root / "file-linked")
    (store.root / "file-linked" / WEIGHTS).unlink()
    (store.root / "file-linked" / WEIGHTS).symlink_to(outside / WEIGHTS)
    for name in ("linked", "file-linked"):
        with pytest.raises(ValueError, match="leads out of the store"):
            store.get(name)
    assert list(store.listing().offered) == ["alpha"]
    # A version that is a link is none, wherever it leads; nor is a history.
    (store.root / "alpha" / HASH).symlink_to(version.path)
    with pytest.raises(KeyError):
        store.lease(f"alpha@{HASH}")
    (tmp_path / "moves").write_bytes((store.root / "alpha" / "moves.jsonl").read_bytes())
    (store.root / "alpha" / "moves.jsonl").unlink()
    (store.root / "alpha" / "moves.jsonl").symlink_to(tmp_path / "moves")
    for ask in (store.get, store.history, store.rollback):
        with pytest.raises(ValueError, match=r"moves\.jsonl cannot be read"):
            ask("alpha")
    assert contents(outside) == before
