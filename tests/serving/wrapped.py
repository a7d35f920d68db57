"""Miniature vision-language bases around the text models of gate_models.py, with the same weights.

wrap(make_model("gemma3", plain), "gemma3", folder)    # answers texts as `plain` does
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def _gemma3(text: Any) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config=text,
        vision_config=VISION | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        boi_token_index=150,
        eoi_token_index=151,
        image_token_index=152,
    )
    return Gemma3ForConditionalGeneration(config)


def _llava(text: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config=text,
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=152,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


class Wrapper(NamedTuple):
    """A vision-language architecture."""

    text: str  # the language model's, as gate_models.py calls it
    make: Callable[[Any], Any]  # the language model's configuration -> the whole


WRAPPERS = {"gemma3": Wrapper("gemma3", _gemma3), "llava": Wrapper("llama", _llava)}


def wrap(plain: Path, wrapper: str, folder: Path) -> Path:
    """Write a vision-language base whose language model is `plain`; its vision tower is random."""
    from transformers import AutoConfig

    torch.manual_seed(2)
    model = WRAPPERS[wrapper].make(AutoConfig.from_pretrained(plain))
    weights = load_file(plain / "model.safetensors")
    body = {name[6:]: one for name, one in weights.items() if name.startswith("model.")}
    missing, unexpected = model.model.language_model.load_state_dict(body, strict=False)
    assert (missing, unexpected) == ([], [])
    with torch.no_grad():
        head = weights.get("lm_head.weight", body["embed_tokens.weight"])
        model.get_output_embeddings().weight.copy_(head)
    model.save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[name] = getattr(model.config.text_config, name, None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
