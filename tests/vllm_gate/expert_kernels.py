"""vLLM's LoRA kernels for experts (MoE), with its own metadata and with that made on the device.

Run by test_expert_kernels.py. The last line of stdout has, of each case, the largest differences of
both from what is worked out token by token. What sorts tokens by adapter and expert is CUDA code; a
stand-in does it here, and leaves rubbish where that code writes nothing.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any
from unittest import mock

import torch

from tests.interpreter import install

install()

from vllm.lora.ops.triton_ops import fused_moe_lora_op as kernels  # noqa: E402
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta  # noqa: E402

from vllm_gate.device_state import all_slots, prepare_on_device  # noqa: E402

SLOTS, EXPERTS, TOP, HIDDEN, OUT = 3, 4, 2, 64, 96
BLOCK = 16
RUBBISH = 1 << 20


class Layer:
    """An expert layer's LoRA weights, a batch, and what the batch must become."""

    def __init__(self, tokens: int, rank: int, mapping: list[int], enabled: list[int]) -> None:
        torch.manual_seed(tokens + rank)
        self.rank = rank
        self.x = torch.randn(tokens, HIDDEN)
        self.a = torch.randn(SLOTS, EXPERTS, rank, HIDDEN) / HIDDEN**0.5
        self.b = torch.randn(SLOTS, EXPERTS, OUT, rank) / rank**0.5
        self.experts = torch.stack([torch.randperm(EXPERTS)[:TOP] for _ in range(tokens)]).int()
        self.weights = torch.rand(tokens, TOP)
        self.mapping = torch.tensor(mapping)
        self.enabled = torch.tensor(enabled, dtype=torch.int32)

    def by_hand(self) -> torch.Tensor:
        """[T, top, out], token by token."""
        out = torch.zeros(len(self.x), TOP, OUT)
        for token, slot in enumerate(self.mapping.tolist()):
            if slot >= 0 and self.enabled[slot]:
                for place, expert in enumerate(self.experts[token].tolist()):
                    out[token, place] = self.b[slot, expert] @ (
                        self.a[slot, expert] @ self.x[token]
                    )
        return out

    def by_kernels(self, meta: LoRAKernelMeta, sort: bool) -> torch.Tensor:
        """The same by vLLM; sort: through lists of tokens by adapter and expert."""
        tokens = len(self.x)
        mapping, _, _, _, ids, none, active = meta.meta_args(tokens, False)
        out = torch.zeros(tokens, TOP, OUT)
        if bool(none):
            return out
        lists: tuple[Any, ...] = (None, self.experts.reshape(-1), None)
        if sort:
            lists = self.sorted_lists(mapping, ids)
        blocks = (BLOCK, 32, 32, 1, 4, 2, 1)
        with mock.patch.object(kernels.current_platform, "num_compute_units", lambda *_: 4):
            kernels._fused_moe_lora(
                out, self.x, [self.a], [self.b], self.weights, *lists, mapping, self.rank, TOP,
                ids, active, self.enabled, *blocks, *blocks,
            )  # fmt: skip
        return out

    def sorted_lists(self, mapping: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """moe_lora_align_block_size: of each listed adapter its tokens by expert, in blocks."""
        pairs = self.experts.reshape(-1).tolist()
        room = len(pairs) + EXPERTS * (BLOCK - 1)
        room += -room % BLOCK
        sorted_ids = torch.full((SLOTS, room), RUBBISH, dtype=torch.int32)
        experts = torch.full((SLOTS, room // BLOCK), -1, dtype=torch.int32)
        ends = torch.full((SLOTS,), RUBBISH, dtype=torch.int32)
        for slot in ids.tolist():
            if slot < 0 or not self.enabled[slot]:
                continue
            sorted_ids[slot] = len(pairs)
            at = 0
            for expert in range(EXPERTS):
                mine = [
                    number
                    for number, chosen in enumerate(pairs)
                    if chosen == expert and mapping[number // TOP] == slot
                ]
                for start in range(0, len(mine), BLOCK):
                    block = mine[start : start + BLOCK]
                    sorted_ids[slot, at : at + len(block)] = torch.tensor(block)
                    experts[slot, at // BLOCK] = expert
                    at += BLOCK
            ends[slot] = at
        return sorted_ids, experts, ends


MAPPINGS = {
    "all slots": [0, 2, -1, 1, 0, -1, 2, 1],
    "one slot": [-1, -1, 2, -1, 2, -1, -1, 2],
    "one that is off": [1, 0, -1, 1, 1, 0, -1, -1],
    "no adapter": [-1] * 8,
}


RANKS = {"rank 8": 8, "rank 80": 80}  # each has a kernel of its own for few tokens
LISTS = {"few tokens": False, "sorted": True}


def differences(name: str, rank: int, sort: bool) -> list[float]:
    """Of vLLM's metadata, of ours, and the largest value that either should give."""
    layer = Layer(8, rank, MAPPINGS[name], [1, int(name != "one that is off"), 1])
    theirs, ours = (LoRAKernelMeta.make(SLOTS, 16, "cpu") for _ in range(2))
    ours.lora_token_start_loc.fill_(77)  # of a step before
    theirs.prepare_tensors(layer.mapping)
    prepare_on_device(ours, layer.mapping, all_slots(SLOTS, torch.device("cpu")))
    wanted = layer.by_hand()
    found = [layer.by_kernels(meta, sort) - wanted for meta in (theirs, ours)]
    return [float(values.abs().max()) for values in (*found, wanted)]


if __name__ == "__main__":
    cases = product(MAPPINGS, RANKS, LISTS)
    found = {
        ", ".join(case): differences(case[0], RANKS[case[1]], LISTS[case[2]]) for case in cases
    }
    print(json.dumps(found))
