"""What is kept of a decision point for a request that asks for a trace."""

from __future__ import annotations

from typing import Any

import torch

Evidence = dict[str, dict[str, Any]]
TOP = 5


def entry(h: float, ids: list[int], probabilities: list[float]) -> dict[str, Any]:
    """Entropy (nats) and the base's best tokens with their probabilities."""
    return {
        "entropy": round(h, 6),
        "base_top": [
            {"token_id": token, "probability": round(p, 6)}
            for token, p in zip(ids, probabilities, strict=True)
        ],
    }


def gather(logits: torch.Tensor, h: float) -> dict[str, Any]:
    """The same from one row of logits [V]."""
    best = logits.float().softmax(-1).topk(min(TOP, logits.shape[-1]))
    return entry(h, best.indices.tolist(), best.values.tolist())
