"""CPU LoRA kernels that touch only the rows an adapter belongs to.

vLLM 0.32's own (vllm/lora/ops/torch_ops/lora_ops.py) index the stacked weights with each row's LoRA
slot. A row of the base model has slot -1, which reads the *last* slot: in a mixed batch base
requests are answered with some adapter's weights. They also gather one copy of the weights per row.
These loop over the slots present instead: right for base rows, and cost goes with adapter rows.
The layers that use them, and do without them where they can, are in lora_layers.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class Wrapper(PunicaWrapperCPU):
        """vLLM's wrapper with what we add to it."""

        rows_of: list[tuple[int, torch.Tensor | slice]]  # slot -> its tokens
        sampled_slots: list[int]


def _slots(indices: torch.Tensor) -> Iterator[tuple[int, torch.Tensor | slice]]:
    """(slot, its rows) for each adapter slot in `indices` [rows]; -1 is the base and left out."""
    if indices.numel() == 0:
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low == high:
        if low >= 0:
            yield low, slice(0, indices.numel())
        return
    for slot in range(max(low, 0), high + 1):
        rows = (indices == slot).nonzero().squeeze(1)
        if rows.numel():
            yield slot, rows


def _weights(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """[out, in] of one slot of [slots, 1, out, in] or [slots, out, in]."""
    weights = stacked[slot]
    return weights.squeeze(0) if weights.dim() == 3 else weights


def bgmv_shrink(
    inputs: torch.Tensor,  # [rows, in]
    lora_b_weights: torch.Tensor,  # lora_A of every slot; vLLM's name
    output_tensor: torch.Tensor,  # [rows, rank], float32
    lora_indices_tensor: torch.Tensor,  # [rows]
    scaling: float = 1.0,
) -> None:
    """output = scaling * inputs @ A^T on adapter rows."""
    for slot, rows in _slots(lora_indices_tensor):
        a = _weights(lora_b_weights, slot).to(output_tensor.dtype)
        output_tensor[rows, : a.shape[0]] = scaling * (inputs[rows].to(a.dtype) @ a.T)


def bgmv_expand(
    inputs: torch.Tensor,  # [rows, rank]
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,  # [rows, out]
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """output += inputs @ B^T on adapter rows."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    bgmv_expand_slice(
        inputs, lora_b_weights, output_tensor, lora_indices_tensor, 0, width, add_inputs
    )


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """output[:, offset : offset + size] += inputs @ B^T on adapter rows."""
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    for slot, rows in _slots(lora_indices_tensor):
        b = _weights(lora_b_weights, slot)[:slice_size].to(columns.dtype)
        product = inputs[rows].to(b.dtype) @ b.T
        columns[rows] = columns[rows] + product if add_inputs else product


def _rows_of(slots: list[int]) -> list[tuple[int, torch.Tensor | slice]]:
    """(slot, its rows) for each adapter slot among `slots`, one for each row; -1 is the base."""
    import torch

    if max(slots, default=-1) < 0:
        return []
    found: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            found.setdefault(slot, []).append(row)
    runs = {slot: rows[-1] - rows[0] == len(rows) - 1 for slot, rows in found.items()}
    return [  # a run of rows is a view, others have to be gathered
        (slot, slice(rows[0], rows[-1] + 1) if runs[slot] else torch.tensor(rows))
        for slot, rows in found.items()
    ]


def update_base_metadata(
    self: Wrapper,
    mapping: LoRAMapping,
    lora_index_to_id: list[int | None],
    _: int,
    vocab_size: int,
) -> None:
    """Which slot each token [T] and each sampled row has: vLLM's, less what only a GPU reads."""
    slot_of = {lora: slot for slot, lora in enumerate(lora_index_to_id) if lora is not None}
    slot_of[0] = -1
    tokens = [slot_of[lora] for lora in mapping.index_mapping]
    samples = [slot_of[lora] for lora in mapping.prompt_mapping]
    # Small lists go into numpy's views of these buffers, at a tenth of what torch takes.
    self._token_lora_indices.numpy()[: len(tokens)] = tokens
    self._embeddings_indices.numpy()[: len(tokens)] = [max(t, 0) * vocab_size for t in tokens]
    self._sampler_indices.numpy()[: len(samples)] = samples
    self.indices_len[:] = [len(tokens), len(samples), None, len(tokens)]


def update_metadata(
    self: Wrapper,
    mapping: LoRAMapping,
    lora_index_to_id: list[int | None],
    max_loras: int,
    vocab_size: int,
    **_: object,
) -> None:
    """The same, and which rows each slot has: once a step, not once a layer.

    vLLM's also counts stretches of equal slots in prompts, which its own kernels read.
    """
    self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
    self.is_prefill = False  # our kernels take each row by its slot, in prompts too
    self.rows_of = _rows_of(self.token_lora_indices.tolist())
    self.sampled_slots = [slot for slot, _ in _rows_of(self.sampler_indices.tolist())]
