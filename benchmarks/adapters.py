"""Random LoRAs, for benchmarks that only ask how fast."""

from __future__ import annotations

from pathlib import Path

from adapters.adapter import CONFIG, WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import sha256_file
from adapters.manifest import Base, Gate, Manifest


def make_random_adapter(
    folder: Path, base: Path, seed: int, rank: int = 8, tau: float = 0.3
) -> Path:
    """A PEFT folder on q and o of `base`, with a manifest whose gate opens at `tau` nats."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "o_proj"],
        init_lora_weights=False,
    )
    path = folder / f"random-{seed}"
    get_peft_model(model, config).save_pretrained(str(path))
    opened = BaseCheckpoint.open(str(base))
    manifest = Manifest(
        name=path.name,
        family="tiny",
        base=Base(
            model=opened.name, architecture=opened.architecture, fingerprint=opened.fingerprint
        ),
        gate=Gate(tau=tau, rate=0.06, tokens=1),
        files={file: sha256_file(path / file) for file in (CONFIG, WEIGHTS)},
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return path
