"""vLLM's LoRA layers with our work in them: right rows, right rank, and none where none is due."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.lora.layers.replicated_linear import ReplicatedLinearWithLoRA
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
from vllm.lora.layers.vocab_parallel_embedding import VocabParallelEmbeddingWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from vllm_gate import patches
from vllm_gate.cpu import lora_layers

SLOTS, MAX_RANK, IN, SIZES, VOCAB = 3, 8, 12, (6, 4, 4), 20
CONFIG = SimpleNamespace(
    max_lora_rank=MAX_RANK, fully_sharded_loras=False, lora_dtype=torch.float32
)
MERGED = MergedColumnParallelLinearWithLoRA
BASES = {
    MERGED: MergedColumnParallelLinear,
    RowParallelLinearWithLoRA: RowParallelLinear,
    ReplicatedLinearWithLoRA: ReplicatedLinear,
}
# The slot of each row; -1 is the base.
MAPPINGS = [[-1] * 4, [0] * 4, [2], [-1, 1, -1, 1, 0], [2, 2, -1], [0, 1, 2, -1, 0], [-1, -1, 1, 1]]


class Linear:
    """As much of vLLM's linear layers as their wrappers ask for."""

    tp_size, tp_rank, input_size, input_size_per_partition = 1, 0, IN, IN
    output_sizes, output_size, output_size_per_partition = SIZES, sum(SIZES), sum(SIZES)

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)  # vLLM's own asks for an engine around it
        self.weight = torch.nn.Parameter(torch.randn(sum(SIZES), IN), requires_grad=False)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.calls += 1
        return x @ self.weight.T, None


@pytest.fixture(autouse=True)
def ours() -> None:
    patches.install("cpu")
    torch.manual_seed(0)


def made(kind: Any, base: torch.nn.Module | None = None) -> Any:
    layer = kind(base or type("Base", (Linear, BASES[kind]), {})())
    layer.create_lora_weights(SLOTS, CONFIG)
    layer.set_mapping(PunicaWrapperCPU(64, 64, "cpu"))
    return layer


def map_rows(layer: Any, slots: list[int]) -> None:
    """A step whose rows have these slots; adapter N sits in slot N - 1."""
    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(ids, ids, is_prefill=True)
    layer.punica_wrapper.update_metadata(mapping, [1, 2, 3], SLOTS + 1, VOCAB)


def adapter(rank: int, sizes: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """(A, B) of each slice, the last but one left out where there are several."""
    a: list[Any] = [torch.randn(rank, IN) for _ in sizes]
    b: list[Any] = [torch.randn(size, rank) for size in sizes]
    if len(sizes) > 1:
        a[-2] = b[-2] = None
    return a, b


def put(layer: Any, slot: int, a: list[Any], b: list[Any]) -> None:
    if len(a) > 1:
        layer.set_lora(slot, a, b)
    else:
        layer.set_lora(slot, a[0], b[0])


def expected(
    layer: Any, x: torch.Tensor, slots: list[int], adapters: dict[int, Any]
) -> torch.Tensor:
    """Row by row, slice by slice, from the adapters as they were given."""
    y = x @ layer.base_layer.weight.T
    for row, slot in enumerate(slots):
        column = 0
        a, b = adapters.get(slot, ((), ()))
        for one_a, one_b, size in zip(a, b, layer.output_slices, strict=False):
            if one_a is not None:
                y[row, column : column + size] += one_b @ (one_a @ x[row])
            column += size
    return y


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("slots", MAPPINGS)
def test_a_mixed_batch_against_a_loop_over_rows(kind: Any, slots: list[int]) -> None:
    layer = made(kind)
    adapters = {0: adapter(1, layer.output_slices), 1: adapter(MAX_RANK, layer.output_slices)}
    adapters[2] = adapter(3, layer.output_slices)
    for slot, given in adapters.items():
        put(layer, slot, *given)
    map_rows(layer, slots)
    x = torch.randn(len(slots), IN)
    output, bias = layer(x)
    assert bias is None
    torch.testing.assert_close(output, expected(layer, x, slots, adapters))
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(output[base], (x @ layer.base_layer.weight.T)[base])


@pytest.mark.parametrize("rank", [1, 3, MAX_RANK])
def test_no_more_than_the_adapters_own_rank_is_kept(rank: int) -> None:
    layer = made(MERGED)
    put(layer, 1, *adapter(rank, SIZES))
    weights = lora_layers.pack(layer, 1)
    assert weights is not None
    assert weights.a.shape == (IN, 2 * rank)  # one slice of three is not targeted
    assert [part.b.shape for part in weights.slices] == [(rank, 6), (rank, 4)]
    assert [part.columns for part in weights.slices] == [slice(0, 6), slice(10, 14)]


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_that_takes_anothers_slot(kind: Any) -> None:
    layer = made(kind)
    x = torch.randn(2, IN)
    map_rows(layer, [0, -1])
    seen = []
    for rank in (MAX_RANK, 2, 5):  # a smaller one leaves nothing of a larger one behind
        given = adapter(rank, layer.output_slices)
        put(layer, 0, *given)
        seen.append(layer(x)[0])
        torch.testing.assert_close(seen[-1], expected(layer, x, [0, -1], {0: given}))
    assert not torch.allclose(seen[0], seen[1])
    layer.reset_lora(0)
    assert torch.equal(layer(x)[0], x @ layer.base_layer.weight.T)


def test_a_layer_the_adapter_leaves_alone_runs_the_base_layer_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("worked for an adapter that is not there")

    monkeypatch.setattr(lora_layers, "add", fail)
    layer = made(MERGED)
    put(layer, 0, *adapter(2, SIZES))
    x = torch.randn(3, IN)
    for slots in ([-1, -1, -1], [1, -1, 2]):
        map_rows(layer, slots)
        assert torch.equal(layer(x)[0], x @ layer.base_layer.weight.T)
    map_rows(layer, [-1, 0, -1])
    with pytest.raises(AssertionError, match="not there"):
        layer(x)
    assert layer.base_layer.calls == 3


def test_weights_of_another_type_are_multiplied_in_the_outputs_type() -> None:
    layer = made(ReplicatedLinearWithLoRA)
    a, b = adapter(3, layer.output_slices)
    put(layer, 0, a, b)
    y, x = torch.zeros(2, sum(SIZES), dtype=torch.bfloat16), torch.randn(2, IN).bfloat16()
    map_rows(layer, [-1, 0])
    layer._apply_lora_to_output(x, y)
    wanted = b[0] @ (a[0] @ x[1].float())
    torch.testing.assert_close(y[1].float(), wanted, atol=0.1, rtol=0.05)
    assert not y[0].any()


class Embedding(torch.nn.Module):
    """As much of vLLM's embedding as its wrapper asks for."""

    org_vocab_size, embedding_dim = VOCAB, IN

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(VOCAB, IN), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight[x].clone()


def test_an_embedding_is_looked_up_in_an_adapter_that_has_one() -> None:
    layer = made(VocabParallelEmbeddingWithLoRA, Embedding())
    ids = torch.tensor([3, 3, 7])
    map_rows(layer, [-1, 0, 1])
    assert torch.equal(layer(ids), layer.base_layer(ids))
    a, b = torch.randn(2, VOCAB), torch.randn(IN, 2)
    layer.set_lora(0, a, b)
    wanted = layer.base_layer(ids)
    wanted[1] += b @ a[:, 3]
    torch.testing.assert_close(layer(ids), wanted)
    layer.reset_lora(0)
    assert torch.equal(layer(ids), layer.base_layer(ids))


def test_logits_change_where_an_adapter_has_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "vllm.lora.layers.logits_processor.get_tensor_model_parallel_"
    monkeypatch.setattr(module + "world_size", lambda: 1)
    monkeypatch.setattr(module + "rank", lambda: 0)
    head = torch.randn(VOCAB, IN)
    base = torch.nn.Module()
    base.vocab_size = base.org_vocab_size = VOCAB
    base._apply_head = lambda lm_head, hidden, _: hidden @ lm_head.T
    base._gather_logits = lambda logits: logits
    base._get_logits = lambda hidden, lm_head, *_: hidden @ lm_head.T
    layer = LogitsProcessorWithLoRA(base, IN, torch.float32, torch.device("cpu"), None)
    layer.create_lora_weights(SLOTS, CONFIG)
    layer.set_mapping(PunicaWrapperCPU(64, 64, "cpu"))
    hidden = torch.randn(3, IN)
    map_rows(layer, [-1, 0, 1])
    assert torch.equal(layer._get_logits(hidden, head), hidden @ head.T)
    a, b = torch.randn(2, IN), torch.randn(VOCAB, 2)
    layer.set_lora(0, a, b)
    wanted = hidden @ head.T
    wanted[1] += b @ (a @ hidden[1])
    torch.testing.assert_close(layer._get_logits(hidden, head), wanted)


def test_vllms_own_can_be_had_back() -> None:
    forward = ReplicatedLinearWithLoRA.forward
    with patches.stock("cpu"):
        assert ReplicatedLinearWithLoRA.forward is not forward
        assert forward.__wrapped__ is ReplicatedLinearWithLoRA.forward
    assert ReplicatedLinearWithLoRA.forward is forward


class Manager:
    """As much of vLLM's manager as puts an adapter into a slot."""

    def __init__(self, layer: Any, adapters: dict[int, Any]) -> None:
        self.modules = {"layer": layer}
        self.lora_index_to_id: list[int | None] = [None] * SLOTS
        self._registered_adapters = {
            lora: SimpleNamespace(weights=weights) for lora, weights in adapters.items()
        }

    def put(self, lora_id: int, slot: int) -> None:
        ids = [None if there == lora_id else there for there in self.lora_index_to_id]
        self.lora_index_to_id = [*ids[:slot], lora_id, *ids[slot + 1 :]]
        lora_layers.keeping(Manager._activate)(self, lora_id)  # type: ignore[arg-type]

    def _activate(self, lora_id: int) -> bool:
        slot = self.lora_index_to_id.index(lora_id)
        put(self.modules["layer"], slot, *self._registered_adapters[lora_id].weights)
        return True


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_that_comes_back_is_not_packed_again(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = made(kind)
    packed: list[int] = []
    stock = lora_layers.pack
    monkeypatch.setattr(
        lora_layers, "pack", lambda layer, slot: (packed.append(slot), stock(layer, slot))[1]
    )
    adapters = {lora: adapter(lora, layer.output_slices) for lora in (1, 2, 3, 4)}
    manager = Manager(layer, adapters)
    x = torch.randn(2, IN)
    turns = [(1, 0), (2, 0), (1, 0), (3, 1), (2, 2), (1, 1), (4, 0), (3, 0)]
    for lora, slot in turns:
        manager.put(lora, slot)
        map_rows(layer, [slot, -1])
        wanted = expected(layer, x, [slot, -1], {slot: adapters[lora]})
        torch.testing.assert_close(layer.forward(x)[0], wanted)
    assert len(packed) == 4
    manager._registered_adapters[1] = SimpleNamespace(weights=adapters[2])  # another of its id
    manager.put(1, 0)
    map_rows(layer, [0, -1])
    torch.testing.assert_close(layer.forward(x)[0], expected(layer, x, [0, -1], {0: adapters[2]}))
