"""The mean of adapters: PEFT applies it as the mean of the updates that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from origins import ATTENTION, MLP, lora, peft_updates, small_base
from tiny import make_adapter, write_manifest

from adapters.adapter import TRAINED_ON, AdapterVersion
from adapters.average import average
from adapters.base_checkpoint import BaseCheckpoint
from adapters.manifest import Gate, Manifest
from adapters.store import Store

OTHERS: dict[str, dict[str, Any]] = {
    "the same kind": {},
    "other modules, ranks and scalings": {
        "r": 3,
        "target_modules": ["o_proj", *MLP],
        "use_rslora": True,
        "rank_pattern": {"o_proj": 5},
        "alpha_pattern": {"up_proj": 1},
    },
    "modules by a pattern": {"target_modules": r".*q_proj"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_update_is_the_mean_of_the_updates(tmp_path: Path, other: dict[str, Any]) -> None:
    base = small_base("qwen2", tmp_path / "base")
    folders = [
        lora(base, tmp_path / "one", target_modules=ATTENTION),
        lora(base, tmp_path / "two", seed=1, **other),
        lora(base, tmp_path / "three", seed=2, r=2, lora_alpha=6),
    ]
    average(list(map(AdapterVersion.read, folders)), tmp_path / "mean", "mean")
    updates = [peft_updates(base, folder) for folder in folders]
    found = peft_updates(base, tmp_path / "mean")
    assert found.keys() == {name for one in updates for name in one}
    for name, update in found.items():
        wanted = sum(one.get(name, 0) for one in updates) / 3
        np.testing.assert_allclose(update, wanted, atol=1e-6)


def test_by_hand_in_the_store(
    store: Store, base: BaseCheckpoint, tmp_path: Path, run: Callable[..., str]
) -> None:
    for name, value in (("one", 1.0), ("two", 3.0)):
        folder = make_adapter(tmp_path / name, base, value=value)
        (folder / TRAINED_ON).write_bytes(b"the same")
        store.publish(folder, name, base=base)
    told = run("average", "one", "two", "--name", "mean", "--store", store.root)
    made = store.get("mean")
    assert told == f"{made.id}, of rank 4\n"
    made.check_fits(base)
    assert made.manifest is not None and made.gate == store.get("one").gate
    assert made.manifest.made_by["mean of"] == f"{store.get('one').id}, {store.get('two').id}"
    assert (made.path / TRAINED_ON).read_bytes() == b"the same"
    # The same adapters give the same bytes, and so the same version.
    assert run("average", "one", "two", "--name", "mean", "--store", store.root) == told


def test_other_thresholds_leave_none(store: Store, base: BaseCheckpoint, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / name, base) for name in ("one", "two")]
    other = Gate(tau=2.0, rate=0.02, tokens=100)
    manifest = Manifest.read(folders[1]).model_copy(update={"gate": other})
    (folders[1] / "manifest.json").write_text(manifest.model_dump_json())
    average(list(map(AdapterVersion.read, folders)), tmp_path / "mean", "mean")
    assert AdapterVersion.read(tmp_path / "mean").gate is None


def test_without_a_manifest_the_mean_has_none(tmp_path: Path, base: BaseCheckpoint) -> None:
    folders = [make_adapter(tmp_path / "one", base), make_adapter(tmp_path / "two")]
    average(list(map(AdapterVersion.read, folders)), tmp_path / "mean", "mean")
    assert AdapterVersion.read(tmp_path / "mean").manifest is None


def test_what_has_no_mean_is_refused_and_nothing_is_published(
    store: Store, base: BaseCheckpoint, tmp_path: Path, run: Callable[..., str]
) -> None:
    store.publish(make_adapter(tmp_path / "one", base), "one")
    store.publish(make_adapter(tmp_path / "wide", shape=(12, 9)), "wide")
    foreign = make_adapter(tmp_path / "foreign", rank=3)
    write_manifest(foreign, base)
    other = Manifest.read(foreign)
    weights = other.base.model_copy(update={"fingerprint": "0" * 64})
    changed = other.model_copy(update={"base": weights})
    (foreign / "manifest.json").write_text(changed.model_dump_json())
    store.publish(foreign, "foreign")
    for names, word in (
        (["one"], "at least two"),
        (["one", "foreign"], "one base and family"),
        (["one", "wide"], "other shapes"),
        (["one", "absent"], "absent"),
        (["one"] * 257, "rank 514"),
    ):
        told = run("average", *names, "--name", "mean", "--store", store.root, code=2)
        assert word in told
    assert "mean" not in store.names()
    assert "not a name" in run(
        "average", "one", "one", "--name", "A B", "--store", store.root, code=2
    )
