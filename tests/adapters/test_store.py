"""The store and its adapter folders: what is offered, what is refused, and why."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import flip_bit
from tiny import make_adapter

from adapters.adapter import WEIGHTS, AdapterError
from adapters.base_checkpoint import BaseCheckpoint, fingerprint
from adapters.safetensors_file import read_header
from adapters.store import Store


def test_a_good_adapter_is_offered(store: Store, base: BaseCheckpoint) -> None:
    make_adapter(store.root / "good", base)
    make_adapter(store.root / "plain-peft")  # no manifest: any PEFT folder
    listing = store.listing(base, max_rank=8)
    assert list(listing.offered) == ["good", "plain-peft"]
    assert not listing.refused
    assert listing.offered["good"].rank == 2
    assert listing.offered["good"].manifest.gate.tau == 1.0
    assert listing.offered["plain-peft"].manifest is None


def _flipped_bit(path: Path) -> None:
    flip_bit(path / WEIGHTS)


def _bad_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["gate"]["tau"] = -1
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "reason"), [(_flipped_bit, "hash differs"), (_bad_manifest, "gate.tau")]
)
def test_what_its_manifest_contradicts_is_refused_and_the_others_are_offered(
    store: Store, base: BaseCheckpoint, damage, reason: str
) -> None:
    """test_origins.py has what is refused without a manifest."""
    make_adapter(store.root / "good", base)
    damage(make_adapter(store.root / "bad", base))
    listing = store.listing(base, max_rank=8)
    assert list(listing.offered) == ["good"]
    assert reason in str(listing.refused["bad"])
    assert "'bad'" in str(listing.refused["bad"])


def test_a_rank_over_the_limit_is_refused(store: Store, base: BaseCheckpoint) -> None:
    make_adapter(store.root / "wide", base, rank=8)
    with pytest.raises(AdapterError, match="rank 8 is over the limit 4"):
        store.get("wide", base, max_rank=4)


@given(st.binary(max_size=400))
def test_any_bytes_as_weights_are_refused_cleanly(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except ValueError as error:
        assert "x.safetensors" in str(error)


def test_the_fingerprint_sees_one_changed_weight(base: BaseCheckpoint) -> None:
    before = fingerprint(base.folder)
    flip_bit(base.folder / "model.safetensors")
    assert fingerprint(base.folder) != before
