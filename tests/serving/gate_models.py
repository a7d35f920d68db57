"""Tiny float32 models of several architectures, random, but so that their entropies vary.

The usual initial weights give entropies near log V everywhere and hardly look at the past. These
are larger: every token hangs on all tokens before it, and entropies spread from 0 to log V.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

VOCAB = 160
WEIGHTS = 0.25  # standard deviation of the initial weights
HEAD = 1.8  # and what the output embedding is multiplied by
WINDOW = 24  # shorter than many prompts, and than a block of the cache
CHUNK = 32  # a multiple of the cache's blocks
SLIDING = ("mistral", "gemma2", "gemma3")  # in all layers; in every second one
ARCHITECTURES = ("qwen2", "llama", "qwen3", *SLIDING)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
GEMMA: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
}
LLAMA4: dict[str, Any] = {
    "attention_chunk_size": CHUNK,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "moe_layers": [],
    "interleave_moe_layer_step": 0,
    "num_local_experts": 1,
    "intermediate_size_mlp": 128,
}
GPT_OSS: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "truncate": False},
        **{"beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 256},
    },
}
# name -> (rank, targets): each architecture gets all of them.
ADAPTERS = {
    "one": (1, ("q_proj", "v_proj")),
    "attention": (8, ATTENTION),
    "mlp": (64, MLP),
    "all": (16, ATTENTION + MLP),
}


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random token sequences."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (count, length), generator=generator).tolist()


def _config(architecture: str, vocab: int, tied: bool) -> Any:
    import transformers

    kind, more = {
        "qwen2": ("Qwen2Config", {}),
        "llama": ("LlamaConfig", {}),
        "qwen3": ("Qwen3Config", {}),
        "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
        # Caps low enough to change attention, and the entropies of the final logits.
        "gemma2": (
            "Gemma2Config",
            GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 10.0},
        ),
        "gemma3": ("Gemma3TextConfig", GEMMA),
        "llama4": ("Llama4TextConfig", LLAMA4),
        "gpt_oss": ("GptOssConfig", GPT_OSS),
    }[architecture]
    return getattr(transformers, kind)(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2 if architecture == "llama" else 1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied or architecture in ("qwen2", "gemma2", "gemma3"),
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=WEIGHTS,
        pad_token_id=None,
        **more,
    )


def make_model(architecture: str, folder: Path, vocab: int = VOCAB, *, tied: bool = False) -> Path:
    """Make and save a model, without a tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = _config(architecture, vocab, tied)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(HEAD)
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.normal_(0, 2.0)
            if architecture.startswith("gemma") and "layernorm" in name and "post" in name:
                weight.fill_(12.0)  # else the token's own embedding outweighs the layers
    model.save_pretrained(str(folder))
    return folder


def nearly(model: Path, folder: Path) -> Path:
    """A model in `folder` that agrees with `model` often, and never quite."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 * weight.abs().mean())
    other.save_pretrained(str(folder))
    return folder


def make_adapters(
    base: Path, store: Path, names: Collection[str] = tuple(ADAPTERS), strength: float = 1.0
) -> dict[str, Path]:
    """Some of ADAPTERS with random weights; strength 1 changes many a token."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for seed, (name, (rank, targets)) in enumerate(ADAPTERS.items()):
        if name not in names:
            continue
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if not set(targets) <= {key.rpartition(".")[2] for key, _ in model.named_modules()}:
            continue  # a mixture of experts has no MLP of its own
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=False
        )
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_B" in key:
                    weight.normal_(0, strength / rank**0.5)
        adapted.save_pretrained(str(store / name))
    return {name: store / name for name in names if (store / name).exists()}
