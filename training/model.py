"""The frozen base in transformers: how it is loaded, and its hidden states and logits in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.base import BaseModel

if TYPE_CHECKING:
    import torch
    from torch import nn


def open_base(model: str) -> BaseModel:
    """The base's folder; a hub id is downloaded first, safetensors only.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub has.
    """
    try:
        return BaseModel.open(model)
    except FileNotFoundError as missing:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(
                model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
            )
        except Exception as error:
            raise FileNotFoundError(f"model: {missing}, and it cannot be downloaded") from error
        return BaseModel.open(model)


def load_model(model: str) -> Any:
    """The causal language model `model`, in evaluation mode, on the GPU where there is one.

    Weights are bfloat16 on a GPU and float32 on a CPU, whose bfloat16 kernels are the slower ones
    for small models.

    Raises:
        ValueError: the architecture scales or caps its logits, which `project` does not do.
    """
    import torch
    from transformers import AutoModelForCausalLM

    gpu = torch.cuda.is_available()
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16 if gpu else torch.float32, use_safetensors=True
    )
    for feature in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(loaded.config, feature, None) not in (None, 1, 1.0):
            raise ValueError(f"model: {model} uses {feature}, which is not supported")
    return loaded.to("cuda" if gpu else "cpu").eval()


def free_memory() -> None:
    """Give the memory of models that nobody holds any more back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hidden_states(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
    """Last hidden states [B, T, d] of a causal LM (a PeftModel too), before the output head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state


def head(model: Any) -> nn.Module:
    """The output projection [d -> V]."""
    module: nn.Module = model.get_output_embeddings()
    return module


def pad_right(rows: list[list[int]], fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids -> (ids [B, T], mask [B, T] of ones where real)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask
