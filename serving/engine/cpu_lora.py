"""CPU LoRA kernels that touch only the rows an adapter belongs to.

vLLM 0.32's own (vllm/lora/ops/torch_ops/lora_ops.py) index the stacked weights with each row's LoRA
slot. A row of the base model has slot -1, which reads the *last* slot: in a mixed batch base
requests are answered with some adapter's weights. They also gather one copy of the weights per row.
These loop over the slots present instead: right for base rows, and cost goes with adapter rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


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


def _update_prefill_metadata(self: Any, token_lora_tensor: torch.Tensor) -> None:
    """vLLM's, and which rows each slot has: once a step, not once a layer."""
    self.stock_prefill_metadata(token_lora_tensor)
    self.rows_of = list(_slots(token_lora_tensor))


def _add_lora_linear(
    self: Any,
    y: torch.Tensor,  # [rows, out]
    x: torch.Tensor,  # [rows, in]
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """y += scale * x A^T B^T on adapter rows, slice by slice; nothing where there are none."""
    for slot, rows in self.rows_of:
        mine = x[rows].float()
        offset = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            inner = scale * (mine @ _weights(a, slot).float().T)  # float32, as vLLM's buffer is
            columns = y[:, offset : offset + size]
            outer = _weights(b, slot)[:size].to(y.dtype)
            columns[rows] += inner.to(y.dtype) @ outer.T
            offset += size


def install() -> None:
    """Put the kernels in place of vLLM's in this process; again is harmless."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in KERNELS:
        ours = globals()[name]
        for module in (lora_ops, punica_cpu):  # sgmv_* call bgmv_* inside lora_ops
            if not hasattr(module, name):
                raise AttributeError(f"vLLM's {module.__name__} has no {name}")
            setattr(module, name, ours)
    wrapper = punica_cpu.PunicaWrapperCPU
    if wrapper._update_prefill_metadata is not _update_prefill_metadata:
        wrapper.stock_prefill_metadata = wrapper._update_prefill_metadata
        wrapper._update_prefill_metadata = _update_prefill_metadata
        wrapper.add_lora_linear = _add_lora_linear
