"""vLLM's LoRA layers on the CPU: nothing where no row asks for an adapter, little where one does.

vLLM's wrappers multiply every row by every slot's buffers, padded to the largest rank, in modules
the adapter does not even target. Here a layer keeps, for each slot, what of it is not zero, in the
layout that multiplies fastest; a step without a row of such a slot runs the base layer alone, by
the very call that vLLM makes without LoRA. An adapter keeps that layout while it is in host memory:
where many take turns in few slots, each is laid out once.

Written for vLLM 0.32 (vllm/lora/layers/, vllm/lora/model_manager.py); patches.py puts these
functions in place of vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from vllm.lora.layers import (
        BaseLayerWithLoRA,
        LogitsProcessorWithLoRA,
        VocabParallelEmbeddingWithLoRA,
    )
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    LinearOutput = Tensor | tuple[Tensor, Parameter | None]  # with the bias that it leaves out
    Linear = Callable[[BaseLinearLayerWithLoRA, Tensor], LinearOutput]
    Embedding = Callable[[VocabParallelEmbeddingWithLoRA, Tensor], Tensor]
    Head = Callable[
        [LogitsProcessorWithLoRA, Tensor, VocabParallelEmbedding, Tensor | None, bool],
        Tensor | None,
    ]

Layer = TypeVar("Layer", bound="BaseLayerWithLoRA")
Made = TypeVar("Made")

Rows = slice | torch.Tensor  # a run of rows, or their numbers
READY = "reasonmaxxer_ready"  # of a layer: slot -> what `make` made; of an adapter: layer -> it
ADAPTER = "reasonmaxxer_adapter"  # of a layer: slot -> what its adapter has made ready, and a name


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


def pack(layer: BaseLinearLayerWithLoRA, slot: int) -> Weights | None:
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


def _any(layer: VocabParallelEmbeddingWithLoRA | LogitsProcessorWithLoRA, slot: int) -> bool | None:
    """Whether `slot` has weights in an embedding or a head; None for no, as `pack`."""
    return bool(layer.lora_b_stacked[slot].any()) or None


def _ready(layer: Layer, slot: int, make: Callable[[Layer, int], Made]) -> Made:
    """make(layer, slot), once for each adapter, however often it comes into a slot."""
    slots: dict[int, Made] = layer.__dict__.setdefault(READY, {})
    if slot not in slots:
        slots[slot] = make(layer, slot)
        kept, name = layer.__dict__.get(ADAPTER, {}).get(slot, ({}, ""))
        kept[name] = slots[slot]
    return slots[slot]


def keeping(
    stock: Callable[[LoRAModelManager, int], bool],
) -> Callable[[LoRAModelManager, int], bool]:
    """LoRAModelManager.activate_adapter, giving back to each layer what it made of the adapter."""

    @wraps(stock)
    def activate_adapter(self: LoRAModelManager, lora_id: int) -> bool:
        activated = stock(self, lora_id)
        if activated:
            slot = self.lora_index_to_id.index(lora_id)
            kept = self._registered_adapters[lora_id].__dict__.setdefault(READY, {})
            for name, layer in self.modules.items():
                layer.__dict__.setdefault(ADAPTER, {})[slot] = kept, name
                if name in kept:
                    layer.__dict__.setdefault(READY, {})[slot] = kept[name]
        return activated

    return activate_adapter


def forgetting(stock: Callable[[Layer, int], None]) -> Callable[[Layer, int], None]:
    """reset_lora, with which every set_lora begins, too."""

    @wraps(stock)
    def reset_lora(self: Layer, index: int) -> None:
        for name in (READY, ADAPTER):
            self.__dict__.get(name, {}).pop(index, None)
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


def _rows_of(layer: BaseLayerWithLoRA) -> Sequence[tuple[int, Rows]]:
    """The slots of this step with their rows (lora_kernels.update_metadata).

    None before the first step; so it is with `_sampled_slots`.
    """
    return getattr(layer.punica_wrapper, "rows_of", ())


def _sampled_slots(layer: BaseLayerWithLoRA) -> Sequence[int]:
    """The slots of the rows that this step samples."""
    return getattr(layer.punica_wrapper, "sampled_slots", ())


def _here(layer: BaseLinearLayerWithLoRA) -> Iterator[tuple[Weights, Rows]]:
    """The adapters of this step that have weights in `layer`, with their rows."""
    for slot, rows in _rows_of(layer):
        weights = _ready(layer, slot, pack)
        if weights is not None:
            yield weights, rows


def apply_lora_to_output(
    self: BaseLinearLayerWithLoRA, x: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """In place. x: [..., in], output: [..., out]."""
    y, x = output.view(-1, output.shape[-1]), x.reshape(-1, x.shape[-1])
    for weights, rows in _here(self):
        add(weights, y, x, rows)
    return output


def linear(stock: Linear) -> Linear:
    @wraps(stock)
    def forward(self: BaseLinearLayerWithLoRA, input_: torch.Tensor) -> LinearOutput:
        touched = next(_here(self), None) is not None
        if touched and self.tp_size > 1:
            return stock(self, input_)  # the adapter's share goes in before ranks are summed
        result: LinearOutput = self._modules["base_layer"].forward(input_)  # type: ignore[union-attr]
        if touched:
            self._apply_lora_to_output(input_, result[0] if isinstance(result, tuple) else result)
        return result

    return forward


def embedding(stock: Embedding) -> Embedding:
    @wraps(stock)
    def forward(self: VocabParallelEmbeddingWithLoRA, x: torch.Tensor) -> torch.Tensor:
        touched = any(_ready(self, slot, _any) for slot, _ in _rows_of(self))
        return stock(self, x) if touched else self.base_layer.forward(x)

    return forward


def head(stock: Head) -> Head:
    @wraps(stock)
    def _get_logits(
        self: LogitsProcessorWithLoRA,
        hidden_states: torch.Tensor,
        lm_head: VocabParallelEmbedding,
        embedding_bias: torch.Tensor | None = None,
        skip_gather: bool = False,
    ) -> torch.Tensor | None:
        if any(_ready(self, slot, _any) for slot in _sampled_slots(self)):
            return stock(self, hidden_states, lm_head, embedding_bias, skip_gather)
        lm_head = getattr(lm_head, "base_layer", lm_head)
        return self.base_layer._get_logits(hidden_states, lm_head, embedding_bias, skip_gather)

    return _get_logits
