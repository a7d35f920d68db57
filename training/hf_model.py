"""The frozen base in transformers: how it is loaded, and its hidden states and logits in pieces."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapters.base_checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import nn


def open_base(model: str) -> BaseCheckpoint:
    """The base's folder; a hub id is downloaded first, safetensors only.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub has.
    """
    try:
        base = BaseCheckpoint.open(model)
        if os.path.isdir(model) or _is_whole(base.folder):
            return base
        missing = f"{model}: the local hub cache has not all of its weights"
    except FileNotFoundError as error:
        missing = str(error)
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        )
    except Exception as error:  # of the hub's, of the network, of the disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FileNotFoundError(
            f"model: {missing}, and it cannot be downloaded ({reason})"
        ) from error
    return BaseCheckpoint.open(model)


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the hub's cache has the weights.

    It has not where a download was broken off, or only the tokenizer was wanted before.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    names = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / name).is_file() for name in names)


Dtype = Literal["auto", "float32", "bfloat16"]

# Hidden size from which a model's products outweigh what surrounds them, on a CPU.
WIDE = 512


def load_model(model: str, dtype: Dtype = "auto", device: str | None = None) -> Any:
    """The causal language model `model`, in evaluation mode.

    Args:
        dtype: of the weights; auto: see `best_dtype`. LoRA weights and losses are float32 anyway.
        device: where it goes; None: to the GPU where there is one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of seconds, between bars of minutes
    if dtype == "auto":
        dtype = best_dtype(AutoConfig.from_pretrained(model))
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), use_safetensors=True
    )
    loaded.get_output_embeddings().register_forward_pre_hook(_contiguous)
    if device is None:
        # One of several processes that train together has a GPU of its own, the current one.
        gpu = torch.cuda.is_available()
        device = f"cuda:{torch.cuda.current_device()}" if gpu else "cpu"
    return loaded.to(device).eval()


def _contiguous(_: Any, states: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Copy what the output head is given if it is a view, such as the last state of each prompt.

    On a CPU torch multiplies such a view [B, 1, d] by B copies of the weights: 27 GB for a hundred
    prompts and a vocabulary of 152k. Where they find no room, torch leaves oneDNN for good.
    """
    return (states[0].contiguous(),)


def best_dtype(config: Any) -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU; on a CPU where it is faster, for a checkpoint that is stored in it.

    Args:
        config: a transformers configuration.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    wide = config.get_text_config().hidden_size >= WIDE
    return "bfloat16" if stored is torch.bfloat16 and wide and multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; without, float32 is faster."""
    import torch

    cpu = torch.cpu.get_capabilities()
    return any(cpu.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def free_memory() -> None:
    """Give the memory of models that nobody holds any more back to the device and the system."""
    import ctypes
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")  # a process that has not imported it holds nothing
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps freed blocks; caches are many small ones, and an engine of its own comes next.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def decoder(model: Any) -> nn.Module:
    """The layers of a causal LM (a PeftModel too) below its output head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    module: nn.Module = inner.base_model
    return module


def hidden_states(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
    """Last hidden states [B, T, d] of a causal LM (a PeftModel too), before the output head."""
    return decoder(model)(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state


def head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output projection, hidden states [..., d] to logits [..., V].

    Logits are scaled and capped as the model's own forward does it (Cohere's `logit_scale`,
    Granite's `logits_scaling`, Gemma's `final_logit_softcapping`).
    """
    config, module = model.config.get_text_config(), model.get_output_embeddings()
    scale = (getattr(config, "logit_scale", None) or 1) / (
        getattr(config, "logits_scaling", None) or 1
    )
    cap = getattr(config, "final_logit_softcapping", None)

    def project(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = module(hidden)
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else cap * (logits / cap).tanh()

    return project


def pad_right(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids -> (ids [B, T], mask [B, T] of ones where real)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def batches(
    lengths: Sequence[int], token_budget: int, before: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within `token_budget`.

    Args:
        before: tokens in front of each row that are read and not computed; with them the padded
            size stays within twice the budget.
    """
    before = before or [0] * len(lengths)
    batch: list[int] = []
    read = 0  # the most of `before` in the batch
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        read = max(read, before[index])
        size, computed = len(batch) + 1, lengths[(batch or [index])[0]]
        if batch and size * max(computed, (computed + read) / 2) > token_budget:
            yield batch
            batch, read = [], before[index]
        batch.append(index)
    if batch:
        yield batch
