"""How many tokens a prompt and its answer may have together: what the base has positions for."""

from __future__ import annotations

from typing import Any

# Where a configuration may have the number of positions: the least counts.
_NAMES = (
    *("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "seq_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
# Kinds of RoPE whose `factor` that number contains already.
_STRETCHED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def context_length(config: Any) -> int | None:
    """The context, in tokens; None: the configuration names no limit.

    It is what vLLM allows, `_get_and_verify_max_len` in vllm/config/model.py.

    Args:
        config: a transformers configuration.
    """
    config = config.get_text_config()
    named = [number for name in _NAMES if (number := getattr(config, name, None)) is not None]
    length = getattr(config, "model_max_length", None) or min(named, default=None)  # Cohere's first
    if length is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if "gemma3" in config.model_type:  # its number contains the factor too
        rope = {}
    # One for all layers, or one for each type of layer.
    kinds = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    factors = [
        one["factor"]
        for one in kinds
        if one.get("factor") and one.get("rope_type") not in _STRETCHED
    ]
    return int(length * (factors[-1] if factors else 1))


def context_of(model: str) -> int | None:
    """The context of the base in a folder; None: no limit is known."""
    from transformers import AutoConfig

    try:
        return context_length(AutoConfig.from_pretrained(model, trust_remote_code=False))
    except ValueError:  # transformers does not know the type; vLLM may
        return None


def longest_sequence(model: str, longest: int, max_tokens: int, setting: str = "problems") -> int:
    """Tokens of the longest prompt and its answer, which the base's context may cut short.

    Args:
        model: a folder.
        longest: tokens of the longest prompt.
        max_tokens: of an answer.
        setting: where the prompts come from.

    Raises:
        ValueError: the longest prompt leaves no room for an answer; it names `setting`.
    """
    context = context_of(model)
    if context is None:
        return longest + max_tokens
    if longest >= context:
        raise ValueError(
            f"{setting}: the longest prompt has {longest} tokens, which leaves no room for an "
            f"answer in the base's context of {context}"
        )
    return min(longest + max_tokens, context)
