"""vLLM's LoRA layers on the CPU: nothing where no row asks for an adapter, little where one does.

vLLM's wrappers multiply every row by every slot's buffers, padded to the largest rank, in modules
the adapter does not even target. Here a layer keeps, for each slot, what of it is not zero, in the
layout that multiplies fastest; a step without a row of such a slot runs the base layer alone, by
the very call that vLLM makes without LoRA.

Written for vLLM 0.32 (vllm/lora/layers/); patches.py puts these functions in place of vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch

Rows = slice | torch.Tensor  # a run of rows, or their numbers
READY = "reasonmaxxer_ready"


class Slice(NamedTuple):
    """The B of one of a layer's outputs (q, k and v are outputs of one layer)."""

    ranks: slice  # where its A stands among the layer's
    columns: slice  # where its output stands
    b: torch.Tensor  # [rank, out], contiguous


class Weights(NamedTuple):
    """One adapter in one layer."""

    a: torch.Tensor  # [in, ranks of all slices], contiguous, float32 as vLLM's buffer is
    slices: tuple[Slice, ...]


def _rank(a: torch.Tensor, b: torch.Tensor) -> int:
    """How much of A [rank, in] and B [out, rank] is not padding."""
    used = (a.any(1) & b.any(0)).nonzero()
    return int(used[-1]) + 1 if used.numel() else 0


def pack(layer: Any, slot: int) -> Weights | None:
    """What multiplies the rows of `slot`; None where the adapter leaves this layer alone."""
    parts: list[torch.Tensor] = []
    slices: list[Slice] = []
    rank = column = 0
    for stacked_a, stacked_b, size in zip(
        layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices, strict=True
    ):
        a, b = stacked_a[slot, 0], stacked_b[slot, 0, :size]
        if own := _rank(a, b):
            parts.append(a[:own].T.float())
            columns = slice(column, column + size)
            slices.append(Slice(slice(rank, rank + own), columns, b[:, :own].T.contiguous()))
            rank += own
        column += size
    return Weights(torch.cat(parts, dim=1).contiguous(), tuple(slices)) if slices else None


def _any(layer: Any, slot: int) -> bool | None:
    """Whether `slot` has weights in an embedding or a head; None for no, as `pack`."""
    return bool(layer.lora_b_stacked[slot].any()) or None


def _ready(layer: Any, slot: int, make: Callable[[Any, int], Any]) -> Any:
    """make(layer, slot), once for each adapter that comes into the slot."""
    slots = layer.__dict__.setdefault(READY, {})
    if slot not in slots:
        slots[slot] = make(layer, slot)
    return slots[slot]


def forgetting(stock: Callable[..., None]) -> Callable[..., None]:
    """reset_lora, with which every set_lora begins, too."""

    @wraps(stock)
    def reset_lora(self: Any, index: int) -> None:
        self.__dict__.get(READY, {}).pop(index, None)
        stock(self, index)

    return reset_lora


def add(weights: Weights, y: torch.Tensor, x: torch.Tensor, rows: Rows) -> None:
    """y[rows] += x[rows] A^T B^T. y: [T, out], x: [T, in]."""
    if isinstance(rows, slice):
        y, inner = y[rows], x[rows].float() @ weights.a
        for ranks, columns, b in weights.slices:
            y[:, columns].addmm_(inner[:, ranks].to(y.dtype), b.to(y.dtype))
    else:
        inner = x.index_select(0, rows).float() @ weights.a  # [rows, ranks]
        for ranks, columns, b in weights.slices:
            y[:, columns].index_add_(0, rows, inner[:, ranks].to(y.dtype) @ b.to(y.dtype))


def _of_step(layer: Any, name: str) -> Any:
    """What lora_kernels.update_metadata has found out about the step; empty before the first."""
    return getattr(layer.punica_wrapper, name, ())


def _here(layer: Any) -> Iterator[tuple[Weights, Rows]]:
    """The adapters of this step that have weights in `layer`, with their rows."""
    for slot, rows in _of_step(layer, "rows_of"):
        weights = _ready(layer, slot, pack)
        if weights is not None:
            yield weights, rows


def apply_lora_to_output(self: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """In place. x: [..., in], output: [..., out]."""
    y, x = output.view(-1, output.shape[-1]), x.reshape(-1, x.shape[-1])
    for weights, rows in _here(self):
        add(weights, y, x, rows)
    return output


def linear(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def forward(self: Any, input_: torch.Tensor) -> Any:
        touched = next(_here(self), None) is not None
        if touched and self.tp_size > 1:
            return stock(self, input_)  # the adapter's share goes in before ranks are summed
        result = self._modules["base_layer"].forward(input_)
        if touched:
            self._apply_lora_to_output(input_, result[0] if isinstance(result, tuple) else result)
        return result

    return forward


def embedding(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def forward(self: Any, x: torch.Tensor) -> Any:
        slots = [slot for slot, _ in _of_step(self, "rows_of")]
        touched = any(_ready(self, slot, _any) for slot in slots)
        return stock(self, x) if touched else self.base_layer.forward(x)

    return forward


def head(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def _get_logits(self: Any, hidden: torch.Tensor, lm_head: Any, *args: Any, **kw: Any) -> Any:
        if any(_ready(self, slot, _any) for slot in _of_step(self, "sampled_slots")):
            return stock(self, hidden, lm_head, *args, **kw)
        lm_head = getattr(lm_head, "base_layer", lm_head)
        return self.base_layer._get_logits(hidden, lm_head, *args, **kw)

    return _get_logits
