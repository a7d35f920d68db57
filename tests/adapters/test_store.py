"""The store and its adapter folders: what is offered, what is refused, and why."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tiny import MODULE, make_adapter

from adapters.adapter import CONFIG, WEIGHTS, AdapterError
from adapters.base_checkpoint import BaseCheckpoint, fingerprint
from adapters.safetensors_file import read_header
from adapters.store import Store


def test_a_good_adapter_is_offered(tmp_path: Path, base: BaseCheckpoint) -> None:
    make_adapter(tmp_path / "store" / "good", base)
    make_adapter(tmp_path / "store" / "plain-peft")  # no manifest: any PEFT folder
    listing = Store(tmp_path / "store").listing(base, max_rank=8)
    assert list(listing.offered) == ["good", "plain-peft"]
    assert not listing.refused
    assert listing.offered["good"].rank == 2
    assert listing.offered["good"].manifest.gate.tau == 1.0
    assert listing.offered["plain-peft"].manifest is None


def _no_config(path: Path) -> None:
    (path / CONFIG).unlink()


def _no_weights(path: Path) -> None:
    (path / WEIGHTS).unlink()


def _truncated(path: Path) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[:-8])


def _flipped_bit(path: Path) -> None:
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (path / WEIGHTS).write_bytes(data)


def _huge_header(path: Path) -> None:
    (path / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def _bad_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["gate"]["tau"] = -1
    (path / "manifest.json").write_text(json.dumps(manifest))


def _extra_tensor(path: Path) -> None:
    save_file({"lm_head.weight": np.ones((2, 2), np.float32)}, path / WEIGHTS)
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_no_config, "adapter_config.json is missing"),
        (_no_weights, "adapter_model.safetensors is missing"),
        (_truncated, "cut short"),
        (_flipped_bit, "hash differs"),
        (_huge_header, "not a safetensors file"),
        (_bad_manifest, "gate.tau"),
        (_extra_tensor, "holds no tensors of a LoRA"),
    ],
)
def test_a_damaged_adapter_is_refused_by_name_and_the_others_are_offered(
    tmp_path: Path, base: BaseCheckpoint, damage, reason: str
) -> None:
    store = Store(tmp_path / "store")
    make_adapter(tmp_path / "store" / "good", base)
    damage(make_adapter(tmp_path / "store" / "bad", base))
    listing = store.listing(base, max_rank=8)
    assert list(listing.offered) == ["good"]
    assert reason in str(listing.refused["bad"])
    assert "'bad'" in str(listing.refused["bad"])


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: BaseCheckpoint) -> None:
    store = Store(tmp_path / "store")
    make_adapter(tmp_path / "store" / "shapes", shape=(16, 8))
    other = tmp_path / "other"
    shutil.copytree(base.folder, other)
    weight = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)
    save_file({f"{MODULE}.weight": weight}, other / "model.safetensors")
    make_adapter(tmp_path / "store" / "weights", BaseCheckpoint.open(str(other)))
    refused = store.listing(base).refused
    assert "made for a 16 x 8 weight" in refused["shapes"].reason
    assert "made for other weights" in refused["weights"].reason


def test_a_rank_over_the_limit_is_refused(tmp_path: Path, base: BaseCheckpoint) -> None:
    make_adapter(tmp_path / "store" / "wide", base, rank=8)
    with pytest.raises(AdapterError, match="rank 8 is over the limit 4"):
        Store(tmp_path / "store").get("wide", base, max_rank=4)


def test_links_do_not_lead_out_of_the_store(tmp_path: Path, base: BaseCheckpoint) -> None:
    store = tmp_path / "store"
    make_adapter(store / "inside", base)
    outside = make_adapter(tmp_path / "outside", base)
    os.symlink(outside, store / "linked")
    shutil.copytree(outside, store / "file-linked")
    (store / "file-linked" / WEIGHTS).unlink()
    os.symlink(outside / WEIGHTS, store / "file-linked" / WEIGHTS)
    listing = Store(store).listing(base)
    assert list(listing.offered) == ["inside"]
    assert "leads out" in listing.refused["linked"].reason
    assert "leads out" in listing.refused["file-linked"].reason


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
    path = base.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fingerprint(base.folder) != before
