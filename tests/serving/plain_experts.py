"""gpt-oss on a CPU: its mixture of experts in plain torch, in place of vLLM's Triton kernels.

What the tests look at is its attention, with sinks and with a window in every second layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LIMIT, ALPHA = 7.0, 1.702  # gpt-oss' swiglu


class PlainExperts(nn.Module):
    """Router and experts; parameters have the names that vLLM gives the weights of a checkpoint."""

    def __init__(self, vllm_config: Any, layer_idx: int, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        count, hidden, inner = (
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
        )
        self.chosen = config.num_experts_per_tok
        self.router = nn.Linear(hidden, count)
        self.experts = nn.Module()
        for name, shape in (
            ("w13_weight", (count, 2 * inner, hidden)),
            ("w13_bias", (count, 2 * inner)),
            ("w2_weight", (count, hidden, inner)),
            ("w2_bias", (count, hidden)),
        ):
            self.experts.register_parameter(name, nn.Parameter(torch.empty(shape), False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]: every expert on every token, those not chosen weigh 0."""
        values, places = self.router(x).topk(self.chosen, dim=-1)
        weights = torch.zeros(len(x), len(self.experts.w2_bias), dtype=x.dtype)
        weights.scatter_(1, places, values.softmax(-1))
        both = torch.einsum("th,eih->tei", x, self.experts.w13_weight) + self.experts.w13_bias
        gate, up = both[..., ::2].clamp(max=LIMIT), both[..., 1::2].clamp(-LIMIT, LIMIT)
        inner = (up + 1) * gate * torch.sigmoid(ALPHA * gate)
        out = torch.einsum("tei,ehi->teh", inner, self.experts.w2_weight) + self.experts.w2_bias
        return torch.einsum("te,teh->th", weights, out)


def install() -> None:
    """Before the model is made."""
    from vllm.model_executor.models import gpt_oss

    gpt_oss.TransformerBlock.mlp_cls = PlainExperts
