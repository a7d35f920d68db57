"""What a GPU knows of its gated requests, so that no step waits for the host.

Under asynchronous scheduling the host plans a step before it knows which gates the last one opened.
So the gates and the decision points stand in tables on the device, by request slot.
"""

from __future__ import annotations

from typing import Any

import torch

from adapters.gate import entropy, opens


class GateTable:
    """Gates and decision points, by slot."""

    def __init__(self, slots: int, positions: int, device: torch.device) -> None:
        self.device = device
        self.on = torch.zeros(slots, dtype=torch.bool, device=device)  # [S] is it gated
        self.tau = torch.zeros(slots, dtype=torch.float32, device=device)  # [S]
        self.temperature = torch.ones(slots, dtype=torch.float32, device=device)  # [S]
        self.points = torch.zeros(slots, positions, dtype=torch.bool, device=device)  # [S, P]

    def add(
        self,
        slot: int,
        tau: float | None,
        temperature: float = 1.0,
        points: tuple[int, ...] = (),
    ) -> None:
        """A request enters a slot (`tau` None: not gated), or comes back after a preemption."""
        self.on[slot] = tau is not None
        if tau is not None:
            self.tau[slot] = tau
            self.temperature[slot] = temperature
            self.points[slot] = False
            if points:
                at = torch.tensor(points, dtype=torch.long).to(self.device, non_blocking=True)
                self.points[slot].index_fill_(0, at, True)

    def on_base(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Which tokens run without their adapter. slots, positions: [T] -> [T]."""
        return self.on[slots] & ~self.points[slots, positions]

    def test(
        self,
        logits: torch.Tensor,  # [R, V]
        slots: torch.Tensor,  # [R]
        positions: torch.Tensor,  # [R]
        sampled: torch.Tensor,  # [R], tokens each row would give
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([R] which gates open, [R] entropies). Call `note` with the ones that do."""
        h = entropy(logits)
        may = self.on_base(slots, positions) & (sampled > 0)
        return may & opens(h, self.tau[slots]), h

    def sharpen(
        self,
        logits: torch.Tensor,  # [R, V]
        slots: torch.Tensor,  # [R]
        positions: torch.Tensor,  # [R]
    ) -> torch.Tensor:
        """The logits [R, V], those of decision points divided by their gate's temperature."""
        at = self.on[slots] & self.points[slots, positions]
        return logits / self.temperature[slots].where(at, 1.0)[:, None]

    def note(self, slots: torch.Tensor, positions: torch.Tensor, opened: torch.Tensor) -> None:
        """Where a gate opened is a decision point. All [R]; a slot stands in one row only."""
        self.points[slots, positions] |= opened


def mask_loras(wrapper: Any, token: torch.Tensor, row: torch.Tensor) -> None:
    """Take the LoRA away from tokens [T] and sampled rows [R] of the step being prepared.

    The two buffers are vLLM's (lora/punica_wrapper/punica_base.py); -1 means no LoRA.
    """
    wrapper._token_lora_indices[: token.shape[0]].masked_fill_(token, -1)
    wrapper._sampler_indices[: row.shape[0]].masked_fill_(row, -1)
