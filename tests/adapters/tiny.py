"""The smallest adapters there are, and the base they fit: made in a millisecond, without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.adapter import CONFIG, WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import sha256_file
from adapters.manifest import Base, Gate, Manifest
from adapters.store import Store

# A folder in memory where there is one: kills and races are the same there, fsync is free.
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
MODULE = "model.layers.0.self_attn.q_proj"


def make_base(folder: Path) -> BaseCheckpoint:
    """A base of one weight."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})
    )
    weight = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    save_file({f"{MODULE}.weight": weight}, folder / "model.safetensors")
    return BaseCheckpoint.open(str(folder))


def make_adapter(
    path: Path,
    base: BaseCheckpoint | None = None,
    rank: int = 2,
    shape: tuple[int, int] = (12, 8),
    value: float = 1.0,
    module: str = MODULE,
) -> Path:
    """A PEFT folder whose weights are all `value`; with a manifest where `base` is given."""
    path.mkdir(parents=True)
    target = module.rpartition(".")[2]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": [target]}
    (path / CONFIG).write_text(json.dumps(config))
    save_file(
        {
            f"base_model.model.{module}.lora_A.weight": np.full((rank, shape[1]), value, "f4"),
            f"base_model.model.{module}.lora_B.weight": np.full((shape[0], rank), value, "f4"),
        },
        path / WEIGHTS,
    )
    if base is not None:
        write_manifest(path, base)
    return path


def write_manifest(path: Path, base: BaseCheckpoint) -> None:
    """The manifest of an adapter folder."""
    manifest = Manifest(
        name=path.name,
        family="tiny",
        base=Base(model=base.name, architecture=base.architecture, fingerprint=base.fingerprint),
        gate=Gate(tau=1.0, rate=0.05, tokens=100, table=[(0.05, 1.0), (0.1, 0.5)]),
        files={file: sha256_file(path / file) for file in (CONFIG, WEIGHTS)},
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below `root` and its bytes, every folder; but for what only locks are held on."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if path.name not in (".lock", ".lease")
    }


def served(store: Store) -> dict[str, str]:
    """What each name gives: the hash of its content."""
    return {name: store.get(name).hash for name in store.names()}
