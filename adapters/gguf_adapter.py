"""A version as a GGUF adapter, for `llama-cli --lora FILE`, as llama.cpp's own converter writes it.

    write_gguf(version, base, Path("math.gguf"))

llama.cpp multiplies by alpha / rank alone, so rank-stabilised scaling and patterns are multiplied
into lora_b. It also keeps the rows of Llama's query and key projections in another order. The
package gguf (extra `gguf`) knows the names of each architecture's tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from adapters.adapter import AdapterError, AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import atomic_write
from adapters.safetensors_file import Tensor, as_float32

# Class in transformers -> architecture in gguf. Others store some weights in yet other ways.
ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "Gemma2ForCausalLM": "GEMMA2",
    "Gemma3ForCausalLM": "GEMMA3",
}
SUFFIX = ".gguf"


def write_gguf(version: AdapterVersion, base: BaseCheckpoint, target: Path) -> None:
    """Write the new file `target`.

    Raises:
        FileExistsError: it is there already.
        AdapterError: the adapter does not fit, or llama.cpp cannot apply it.
        ImportError: the package gguf is not installed.
    """
    import gguf

    if target.exists():
        raise FileExistsError(f"{target} exists")
    version.check_fits(base)
    architecture = ARCHITECTURES.get(base.architecture)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise AdapterError(
            version.name, f"{base.architecture} has no GGUF adapter here; {known} have"
        )
    kind = gguf.MODEL_ARCH[architecture]
    names = gguf.get_tensor_name_map(kind, int(base.config["num_hidden_layers"]))
    tensors: dict[str, Any] = {}
    for module, pair in _pairs(version).items():
        name = names.get_name(module)
        if name is None or module.rpartition(".")[2] in ("embed_tokens", "lm_head"):
            raise AdapterError(version.name, f"llama.cpp applies no LoRA to '{module}'")
        a, b = as_float32(pair["A"]), as_float32(pair["B"])  # [rank, in], [out, rank]
        b = b * np.float32(version.config.scaling_of(module) * len(a) / _alpha(version))
        if architecture == "LLAMA":
            b = _llama_order(b, module, base.config)
        tensors |= {f"{name}.weight.lora_a": a, f"{name}.weight.lora_b": b}
    with atomic_write(target) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[kind])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(version.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(version))
        for name, array in sorted(tensors.items()):
            writer.add_tensor(name, np.ascontiguousarray(array))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _alpha(version: AdapterVersion) -> float:
    """The alpha of the file; llama.cpp takes 0 to mean no scaling at all."""
    return float(version.config.lora_alpha) or 1.0


def _pairs(version: AdapterVersion) -> dict[str, dict[str, Tensor]]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for side, tensor in version.folder.sides.values():
        pairs.setdefault(side.module, {})[side.side] = tensor
    return pairs


def _llama_order(b: Any, module: str, config: dict[str, Any]) -> Any:
    """Rows of lora_b [out, rank] as llama.cpp keeps them (LlamaModel.permute of its converter)."""
    heads = int(config["num_attention_heads"])
    count = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    last = module.rpartition(".")[2]
    if last not in count:
        return b
    half = len(b) // count[last] // 2
    assert math.prod((count[last], 2, half)) == len(b)
    return b.reshape(count[last], 2, half, -1).swapaxes(1, 2).reshape(b.shape)
