"""A miniature vision-language base around a text model of gate_models.py, with the same weights.

    wrap(make_model("llama", plain), folder)    # answers texts as `plain` does

It is an Idefics3, the class of SmolVLM. vLLM's modules of most others import torchvision, which its
CPU build goes without.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

TEXT = "llama"  # the language model's architecture
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def wrap(plain: Path, folder: Path) -> Path:
    """Write a vision-language base whose language model is `plain`; its vision tower is random."""
    from transformers import AutoConfig, Idefics3Config, Idefics3ForConditionalGeneration

    torch.manual_seed(2)
    text = AutoConfig.from_pretrained(plain)
    config = Idefics3Config(
        text_config=text,
        vision_config=VISION,
        scale_factor=2,
        image_token_id=152,
        pad_token_id=0,
        eos_token_id=text.eos_token_id,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    model = Idefics3ForConditionalGeneration(config)
    weights = load_file(plain / "model.safetensors")
    body = {name[6:]: one for name, one in weights.items() if name.startswith("model.")}
    model.model.text_model.load_state_dict(body)
    with torch.no_grad():
        model.lm_head.weight.copy_(weights.get("lm_head.weight", body["embed_tokens.weight"]))
    model.save_pretrained(str(folder))
    return folder
