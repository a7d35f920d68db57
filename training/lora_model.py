"""LoRA layers around a model in transformers: put in, and filled from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import set_seed

from adapters.adapter import WEIGHTS
from adapters.recipe import Lora


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration of an adapter of this shape."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def peft_model(model: Any, lora: Lora, seed: int) -> Any:
    """`model` with fresh LoRA layers (B = 0: it still is the base)."""
    set_seed(seed)
    return get_peft_model(model, lora_config(lora))


def load_adapter(model: Any, checkpoint: Path) -> None:
    """Put the weights of a checkpoint of the same shape into the LoRA layers of `model`."""
    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS))
