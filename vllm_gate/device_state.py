"""What a GPU knows of its gated requests, so that no step waits for the host.

Under asynchronous scheduling the host plans a step before it knows which gates the last one opened.
So the gates, and the decision points that await their replay, stand in tables on the device, by
request slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adapters.gate import entropy, opens

if TYPE_CHECKING:
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase


class GateTable:
    """Gates and decision points, by slot."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.on = torch.zeros(slots, dtype=torch.bool, device=device)  # [S] is it gated
        self.tau = torch.zeros(slots, dtype=torch.float32, device=device)  # [S]
        self.temperature = torch.ones(slots, dtype=torch.float32, device=device)  # [S]
        self.point = torch.full((slots,), -1, device=device)  # [S] a position; -1: none

    def add(self, slot: int, tau: float | None, temperature: float = 1.0) -> None:
        """A request enters a slot (`tau` None: not gated), or comes back after a preemption."""
        self.on[slot] = tau is not None
        self.point[slot] = -1
        if tau is not None:
            self.tau[slot] = tau
            self.temperature[slot] = temperature

    def replays(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[R] which requests compute a decision point again. positions: [R] they begin at."""
        return self.point[slots] == positions

    def test(
        self,
        logits: torch.Tensor,  # [L, V]; a request has a row for each draft, too
        slots: torch.Tensor,  # [L]
        replays: torch.Tensor,  # [L]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([L] where the gates open, [L] entropies). Call `note` with the points that count."""
        h = entropy(logits)
        return self.on[slots] & ~replays & opens(h, self.tau[slots]), h

    def sharpen(
        self,
        logits: torch.Tensor,  # [L, V]
        slots: torch.Tensor,  # [L]
        replays: torch.Tensor,  # [L]
    ) -> torch.Tensor:
        """The logits [L, V], those of replays divided by their gate's temperature."""
        return logits / self.temperature[slots].where(replays, 1.0)[:, None]

    def note(self, slots: torch.Tensor, positions: torch.Tensor, opened: torch.Tensor) -> None:
        """The next step replays where a gate opened. All [R], by request."""
        self.point[slots] = positions.where(opened, -1)


def mask_loras(wrapper: PunicaWrapperBase, token: torch.Tensor, row: torch.Tensor) -> None:
    """Take the LoRA away from tokens [T] and sampled rows [R] of the step being prepared.

    The two buffers are vLLM's (lora/punica_wrapper/punica_base.py); -1 means no LoRA.
    """
    wrapper._token_lora_indices[: token.shape[0]].masked_fill_(token, -1)
    wrapper._sampler_indices[: row.shape[0]].masked_fill_(row, -1)


class Unmasked:
    """vLLM's mapping of a batch, before a mask, for steps in which only the mask is another.

    vLLM makes the mapping in a loop over tokens, and anew only for another batch.
    """

    def __init__(self, wrapper: PunicaWrapperBase) -> None:
        self.wrapper = wrapper
        self.key: object = None
        self.saved: tuple[torch.Tensor, ...] = ()

    def _buffers(self) -> tuple[torch.Tensor, ...]:
        tokens, samples = self.wrapper.indices_len[:2]
        return self.wrapper._token_lora_indices[:tokens], self.wrapper._sampler_indices[:samples]

    def save(self, key: object) -> None:
        """Keep what the buffers hold, which vLLM has made of `key`."""
        self.key, self.saved = key, tuple(buffer.clone() for buffer in self._buffers())

    def restore(self, key: object) -> bool:
        """Write it back, where it was made of the same; False: of something else."""
        if key != self.key:
            return False
        for buffer, saved in zip(self._buffers(), self.saved, strict=True):
            buffer.copy_(saved)
        return True


def prepare_on_device(meta: LoRAKernelMeta, mapping: torch.Tensor, slots: torch.Tensor) -> None:
    """LoRAKernelMeta.prepare_tensors, for which the host does not wait.

    vLLM's asks the device whether any token has a LoRA, and which ones there are. This one lists
    all slots; where a slot has no token the kernels (lora/ops/triton_ops) leave at once.

    Args:
        mapping: [T] slots, -1: no LoRA.
        slots: 0, 1, ... up to the last one, and -1; made once. The slots stand first, so that they
            are found by those who look at as many entries as there are slots.
    """
    count = mapping.shape[0]
    meta.token_lora_mapping[:count].copy_(mapping)
    last = mapping.masked_fill(mapping < 0, slots.shape[0])
    meta.token_indices_sorted_by_lora_ids[:count].copy_(last.argsort(stable=True))
    tokens = (mapping[None] == slots[:, None]).sum(1, dtype=torch.int32)
    meta.num_tokens_per_lora.copy_(tokens)
    meta.active_lora_ids.copy_(slots)
    meta.lora_token_start_loc[:1].zero_()
    meta.lora_token_start_loc[1:].copy_(tokens.cumsum(0))
    meta.no_lora_flag_cpu.fill_(False)  # the host's; which rows have a LoRA only the device knows
    meta.num_active_loras_cpu.fill_(slots.shape[0])


def all_slots(count: int, device: torch.device) -> torch.Tensor:
    """What `prepare_on_device` lists: [count + 1] the slots, then -1 for no LoRA."""
    return torch.arange(-1, count, device=device).roll(-1)
