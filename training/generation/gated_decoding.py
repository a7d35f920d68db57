"""Gated decoding in transformers: what the engine does in serving/, without an engine.

Every position runs on the base and its keys and values stay. Where the gate opens, that position
runs once more with the adapter on, reads the base's cache and writes nothing; the token is drawn
from there. A batch is stepped together; only the rows whose gate is open run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from adapters.gate import entropy, opens
from training.base_cache import read_only
from training.decision_points import layer_windows

IsOpen = Callable[[torch.Tensor], torch.Tensor]  # base logits [B, V] -> [B] bool
Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids [B, S], logits [B, V] -> [B]
Ended = Callable[[torch.Tensor], torch.Tensor]  # answers so far [B, T] -> [B] bool


def open_above(tau: float) -> IsOpen:
    """The gate: open where the base's entropy exceeds `tau` nats."""
    return lambda logits: opens(entropy(logits), tau)


def open_at_random(rate: float) -> IsOpen:
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
    ended: Ended | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer a batch of prompts, with the adapter where the gate is open.

    Args:
        model: a PeftModel.
        ids, mask: [B, S] prompts, padded on the left; ones where real.
        ends: tokens after which a row is done; what follows in its row means nothing.
        temperature: divides the logits where the gate is open.
        ended: whether a row is done by what it says, whatever its last token.

    Returns:
        Tokens [B, T], and which of them were gated [B, T] bool; T <= max_tokens.
    """
    cache = DynamicCache()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    windows = layer_windows(model.config)

    def base(tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] behind the last of `tokens` [B, S or 1], which enter the cache."""
        with model.disable_adapter():
            logits: torch.Tensor = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions[:, -tokens.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits

    def corrected(rows: torch.Tensor) -> torch.Tensor:
        """The adapter's logits [R, V] behind the last token of `rows`, [R] long."""
        at = positions[rows, -1:]
        masks = {
            kind: _reads(mask[rows], at, window, model.dtype) for kind, window in windows.items()
        }
        logits: torch.Tensor = model(
            input_ids=ids[rows, -1:],
            attention_mask=next(iter(masks.values())) if len(masks) == 1 else masks,
            position_ids=at,
            past_key_values=read_only([(one.keys[rows], one.values[rows]) for one in cache.layers]),
            use_cache=True,
        ).logits[:, -1]
        return logits / temperature

    prompt = ids.shape[1]
    stop = torch.tensor(sorted(ends), device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    gates = []
    logits = base(ids)
    for _ in range(max_tokens):
        opened = is_open(logits) & ~done
        rows = opened.nonzero()[:, 0]
        if len(rows):
            logits = logits.index_copy(0, rows, corrected(rows).to(logits.dtype))
        token = draw(ids, logits)
        ids = torch.cat([ids, token[:, None]], 1)
        gates.append(opened)
        done |= torch.isin(token, stop)
        if ended is not None:
            done |= ended(ids[:, prompt:])
        if done.all() or len(gates) == max_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
        logits = base(token[:, None])
    return ids[:, prompt:], torch.stack(gates, 1)


def _reads(
    mask: torch.Tensor, at: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """The additive mask [R, 1, 1, S] of a row's last position, `at` [R, 1], in a cache [R, S]."""
    seen = mask.bool()
    if window is not None:
        seen &= mask.cumsum(-1) - 1 > at - window
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, lowest)[
        :, None, None
    ]
