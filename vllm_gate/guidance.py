"""Guidance at decision points: away from what would be said after a negative prompt.

MTI (arXiv 2510.13940) needs no training. Where the base is unsure, it appends a short negative
prompt to the text so far and takes the two distributions apart:

    position 41, known       its logits, c: of the adapter, or without one of the base
    42, 43: "OUTPUT ERROR"   the logits behind it, u: of the base
    token 42                 sampled from u + scale (c - u)

Both come from one step, the replay of position 41 with the negative prompt behind it. Its keys and
values lie where those of drafts do: in the request's own next slots, which the next step writes
over. So the negative prompt sees itself and the base's cache, and nothing later sees it.

That takes a step whose tokens the scheduler knows beforehand. Asynchronous scheduling and the V2
runner have none such (docs/limits.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_gate.params import PROMPT, SCALE

if TYPE_CHECKING:
    import torch
    from vllm.tokenizers import TokenizerLike


def guide(
    conditional: torch.Tensor,  # [..., V] logits
    unconditional: torch.Tensor,  # [..., V]; -inf where a grammar forbids a token
    scale: float,
) -> torch.Tensor:
    """Logits [..., V] that are `scale` times as far from the unconditional ones."""
    guided = unconditional + scale * (conditional - unconditional)
    return guided.masked_fill(unconditional.isneginf(), float("-inf"))


def check_engine() -> None:
    """Raise ValueError where this process's engine cannot guide."""
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or envs.VLLM_USE_V2_MODEL_RUNNER:
        raise ValueError(f"{SCALE}: guidance works on vLLM's CPU build alone")


def check_prompt(arguments: dict[str, Any] | None, tokenizer: TokenizerLike | None) -> None:
    """Raise ValueError where a guidance prompt has tokens that the model does not know."""
    prompt = (arguments or {}).get(PROMPT, ())
    if tokenizer is not None and prompt and max(prompt) > tokenizer.max_token_id:
        raise ValueError(
            f"{PROMPT}: token {max(prompt)} is not in the vocabulary, which ends at "
            f"{tokenizer.max_token_id}"
        )
