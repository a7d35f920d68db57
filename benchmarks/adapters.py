"""Random LoRAs, for benchmarks that only ask how fast."""

from __future__ import annotations

from pathlib import Path

from adapters.adapter import CONFIG, WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import sha256_file
from adapters.manifest import Base, Gate, Manifest
from adapters.store import Store

RANK, TAU = 8, 0.3  # nats


def make_random_adapter(folder: Path, base: Path, seed: int) -> Path:
    """A PEFT folder on q and o of `base`, with a manifest whose gate opens at TAU."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q_proj", "o_proj"],
        init_lora_weights=False,
    )
    path = folder / f"random-{seed}"
    get_peft_model(model, config).save_pretrained(str(path))
    manifest = Manifest(
        name=path.name,
        family="tiny",
        base=Base.of(BaseCheckpoint.open(str(base))),
        gate=Gate(tau=TAU, rate=0.06, tokens=1),
        files={file: sha256_file(path / file) for file in (CONFIG, WEIGHTS)},
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return path


def random_store(folder: Path, base: Path, count: int) -> Store:
    """A store in `folder` with random LoRAs, named a0, a1 and so on."""
    store = Store(folder / "store")
    for seed in range(count):
        store.publish(make_random_adapter(folder, base, seed), f"a{seed}")
    return store
