"""Gated decoding in transformers: what the engine does in serving/, without an engine.

Every position runs on the base. Where the gate opens, its keys and values are taken back and that
one position runs again with the adapter on; the token comes from there. A batch is stepped
together: rows whose gate is shut keep the keys and values of their base pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from transformers import DynamicCache

from adapters.gate import entropy, opens

IsOpen = Callable[[torch.Tensor], torch.Tensor]  # base logits [B, V] -> [B] bool
Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids [B, S], logits [B, V] -> [B]


def open_above(tau: float) -> IsOpen:
    """The gate: open where the base's entropy exceeds `tau` nats."""
    return lambda logits: opens(entropy(logits), tau)


def open_by_lot(rate: float) -> IsOpen:
    """A control: open at a share `rate` of positions, whatever the base's entropy."""
    return lambda logits: torch.rand(len(logits), device=logits.device) < rate


@torch.inference_mode()
def decode(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    is_open: IsOpen,
    draw: Draw,
    ends: set[int],
    max_tokens: int,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer a batch of prompts.

    Args:
        model: a PeftModel.
        ids, mask: [B, S] prompts, padded on the left; ones where real.
        ends: tokens after which a row is done; what follows in its row means nothing.
        temperature: divides the logits where the gate is open.

    Returns:
        Tokens [B, T], and which of them were gated [B, T] bool; T <= max_tokens.
    """
    cache = DynamicCache()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)

    def run(tokens: torch.Tensor, adapter: bool) -> torch.Tensor:
        """Logits [B, V] behind the last of `tokens` [B, S or 1]."""
        with nullcontext() if adapter else model.disable_adapter():
            logits: torch.Tensor = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions[:, -tokens.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits

    prompt = ids.shape[1]
    stop = torch.tensor(sorted(ends), device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    gates = []
    logits = run(ids, adapter=False)
    for _ in range(max_tokens):
        opened = is_open(logits) & ~done
        if opened.any():
            base = [(layer.keys[:, :, -1], layer.values[:, :, -1]) for layer in cache.layers]
            cache.crop(-1)
            corrected = run(ids[:, -1:], adapter=True) / temperature
            logits = torch.where(opened[:, None], corrected, logits)
            _put_back(cache, base, ~opened)
        token = draw(ids, logits)
        ids = torch.cat([ids, token[:, None]], 1)
        gates.append(opened)
        done |= torch.isin(token, stop)
        if done.all() or len(gates) == max_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
        logits = run(token[:, None], adapter=False)
    return ids[:, prompt:], torch.stack(gates, 1)


def _put_back(cache: Any, base: list[tuple[torch.Tensor, torch.Tensor]], rows: Any) -> None:
    """Overwrite the last position's keys and values [B, heads, d] with the base's, on `rows`."""
    for layer, (keys, values) in zip(cache.layers, base, strict=True):
        layer.keys[rows, :, -1] = keys[rows]
        layer.values[rows, :, -1] = values[rows]
