"""Random networks of several architectures, float32, with random LoRA layers on every module."""

from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

VOCAB = 97
WINDOW = 6  # of the sliding-window layers: shorter than most rollouts
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HALF_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", HALF_SLIDING | {"final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", HALF_SLIDING),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0}),
}


def network(name: str) -> Any:
    """A base of two layers, large enough weights for every token to depend on all it may see."""
    kind, more = NETWORKS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",  # the one that knows soft-capping
        **more,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def adapted(base: Any, scale: float = 0.3) -> Any:
    """`base` with random LoRA layers."""
    torch.manual_seed(1)
    targets = [m for m in MODULES if any(name.endswith(m) for name, _ in base.named_modules())]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, scale)
    return model.eval()
