"""Models with random weights made on the spot, and engines with and without a gate on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
Shape = Literal["tiny", "31m", "98m", "1.5b"]


def sizes(
    vocabulary: int, hidden: int, intermediate: int, *, layers: int, heads: int, kv_heads: int
) -> dict[str, int]:
    """A shape, as transformers' configurations name its parts."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# Qwen2 with tied embeddings; parameters are counted and printed when the model is made.
SHAPES: dict[Shape, dict[str, int]] = {
    "tiny": sizes(1024, 64, 128, layers=2, heads=2, kv_heads=2),
    "31m": sizes(8192, 512, 1536, layers=8, heads=8, kv_heads=8),
    "98m": sizes(16384, 768, 2048, layers=12, heads=12, kv_heads=12),
    "1.5b": sizes(151936, 1536, 8960, layers=28, heads=12, kv_heads=2),  # Qwen2.5-1.5B's
}
RANK = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LONGEST = 4096


def prepare(threads: int = 1) -> None:
    """Settings of this process, which is started anew with them; call before anything heavy.

    Memory is asked for in huge pages: in small ones, where an engine's weights happen to lie makes
    one of two equal engines up to 5 % faster.
    """
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.environ.update(environment)
        os.execv(sys.executable, sys.orig_argv)
    from vllm_gate import token_report

    token_report.install()


def make_model(
    folder: Path, shape: Shape, adapters: int = 1, dtype: str = "float32"
) -> tuple[Path, list[Path], int]:
    """(base, adapters, parameters): random, with entropies that vary; rank 32 on q, k, v, o."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    parameters = sum(p.numel() for p in model.parameters())
    base = folder / "base"
    model.save_pretrained(str(base))
    paths = [folder / f"adapter-{number}" for number in range(1, adapters + 1)]
    for path in paths:
        lora = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, init_lora_weights=False
        )
        with_lora = get_peft_model(model, lora)
        with_lora.save_pretrained(str(path))
        model = with_lora.unload()
    return base, paths, parameters


def make_adapter(base: Path, folder: Path) -> Path:
    """A random adapter of a model on disk: rank 32 on q, k, v, o, too weak to derail an answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.mul_(0.02)
    adapted.save_pretrained(str(folder))
    return folder


def exactly(tokens: int, **more: Any) -> Any:
    """Sampling parameters of an answer of so many tokens; greedy, unless `more` says otherwise."""
    from vllm import SamplingParams

    fixed = {"max_tokens": tokens, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**{"temperature": 0} | more | fixed)


def make_engine(base: Path, gate: bool, *, adapters: int = 1, **arguments: Any) -> Any:
    """vLLM without LoRA, or with LoRA and all the gate needs. Nothing is compiled in either.

    vLLM's CPU build compiles nothing where LoRA is on.
    """
    from vllm import LLM
    from vllm.platforms import current_platform

    from vllm_gate import engine_args

    with_gate: dict[str, Any] = engine_args(current_platform.device_type) | {
        "enable_lora": True,
        "max_lora_rank": RANK,
        "max_loras": adapters,
    }
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 2**30,
    }
    return LLM(
        model=str(base),
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **(settings | (with_gate if gate else {}) | arguments),
    )
