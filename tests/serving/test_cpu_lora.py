"""CPU LoRA kernels: base rows stay base rows. vLLM's own fail both tests, ours pass them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Reference, findings, make_adapter
from vllm.lora.ops.torch_ops import lora_ops

from vllm_gate import patches
from vllm_gate.cpu import lora_kernels

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
SLOTS, RANK, IN, OUT = 3, 4, 8, 6
MAPPINGS = [[-1, -1, -1], [0, 0, 0], [2, 2], [-1, 0, -1, 2], [1, -1, 0, 2, -1, 1], []]


def by_rows(
    kernel: Callable[..., None], mapping: list[int], dtype: torch.dtype, four: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(kernel's output, the same by a loop over rows) for one of the kernels."""
    torch.manual_seed(0)
    a = torch.randn(SLOTS, 1, RANK, IN, dtype=dtype)
    b = torch.randn(SLOTS, 1, OUT, RANK, dtype=dtype)
    if not four:
        a, b = a.squeeze(1), b.squeeze(1)
    indices = torch.tensor(mapping, dtype=torch.long)
    rows = len(mapping)
    x, h = torch.randn(rows, IN, dtype=dtype), torch.randn(rows, RANK)
    if kernel.__name__ == "bgmv_shrink":
        output = torch.zeros(rows, RANK)
        expected = output.clone()
        kernel(x, a, output, indices, 0.5)
        for row, slot in enumerate(mapping):
            if slot >= 0:
                expected[row] = 0.5 * a.reshape(SLOTS, RANK, IN)[slot].float() @ x[row].float()
        return [(output, expected)]
    pairs = []
    for add in (True, False):
        output = torch.randn(rows, OUT + 4, dtype=dtype)
        expected = output.clone()
        offset = 3 if kernel.__name__ == "bgmv_expand_slice" else 0
        where = (offset, OUT) if offset else ()
        kernel(h, b, output, indices, *where, add_inputs=add)
        for row, slot in enumerate(mapping):
            if slot >= 0:
                part = b.reshape(SLOTS, OUT, RANK)[slot].float() @ h[row].to(dtype).float()
                old = expected[row, offset : offset + OUT].float() if add else 0
                expected[row, offset : offset + OUT] = (old + part).to(dtype)
        pairs.append((output, expected))
    return pairs


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("four", [True, False])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_kernels_against_a_loop_over_rows(
    name: str, mapping: list[int], dtype: torch.dtype, four: bool
) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for output, expected in by_rows(getattr(lora_kernels, name), mapping, dtype, four):
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", KERNELS)
def test_vllms_own_kernels_write_base_rows(name: str) -> None:
    """If this fails, vLLM has mended its kernels and ours can go."""
    stock = patches.theirs(lora_ops, name)
    output, expected = by_rows(stock, [-1, 0, -1, 2], torch.float32, True)[0]
    base, adapter = [0, 2], [1, 3]
    assert not torch.allclose(output[base], expected[base])
    torch.testing.assert_close(output[adapter], expected[adapter], atol=1e-5, rtol=1e-5)


def test_the_rows_of_each_slot() -> None:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    mapping = torch.tensor([-1, -1, 0, -1, 0, -1, 1, -1, 1, 1, -1, -1, 0])
    patches.install("cpu")
    ours = PunicaWrapperCPU(max_num_batched_tokens=16, max_batches=13, device="cpu")
    ids = tuple(slot + 1 for slot in mapping.tolist())  # 0: the base
    ours.update_metadata(LoRAMapping(ids, ids[-1:], is_prefill=True), [1, 2], 2, 100)
    found = {slot: torch.arange(13)[rows].tolist() for slot, rows in ours.rows_of}
    assert found == {0: [2, 4, 12], 1: [6, 8, 9]}
    assert ours.token_lora_indices.tolist() == mapping.tolist()


@pytest.mark.engine
def test_mixed_batch_in_the_real_engine(tmp_path: Path, base_folder: Path) -> None:
    """One batch of base and adapter rows, on stock kernels and on ours, against Hugging Face."""
    folder = make_adapter(tmp_path, "alpha", base_folder, seed=1)
    prompts = [f"{i} + {i} * {i} =" for i in range(6)]
    case = {"base": str(base_folder), "adapter": str(folder), "prompts": prompts}
    outputs = findings(Path(__file__).with_name("mixed_batch.py"), case)
    reference = Reference(base_folder, tmp_path)
    wrong = {"stock": 0, "ours": 0}
    for row, prompt in enumerate(prompts):
        for (kernels, output), adapter in itertools.product(outputs.items(), (False, True)):
            expected = reference.greedy("alpha" if adapter else None, prompt, 16)
            assert len(expected) >= 4, "too many near ties to tell anything"
            same = output[2 * row + adapter][: len(expected)] == expected
            assert same or (kernels == "stock" and not adapter), (kernels, prompt, adapter)
            wrong[kernels] += not same
    assert wrong["ours"] == 0
    assert wrong["stock"] > 0, "vLLM has mended its kernels: ours can go"
