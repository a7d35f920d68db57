"""Nothing in the gate's part of a step on a GPU makes the host wait for the device.

The operations that do are known by name; here they are an error. What a step calls runs on CPU
tensors, whose operations are the same.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import test_runner_v2 as by_hand
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

from benchmarks.waiting import waits
from vllm_gate.device_state import GateTable, all_slots, mask_loras, prepare_on_device


class WaitedError(Exception):
    """The host would have to wait."""


COPIES = ("tolist", "cpu", "__array__")  # on CPU tensors no operation of torch's


def _waits(*_: object, **__: object) -> None:
    raise WaitedError("a copy to the host")


class NoWaiting(TorchDispatchMode):
    """Within, an operation that waits for the device raises."""

    def __enter__(self) -> Any:
        self.patches = [mock.patch.object(torch.Tensor, name, _waits) for name in COPIES]
        for patch in self.patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        for patch in self.patches:
            patch.stop()
        super().__exit__(*args)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if waits(function, args, kwargs or {}):
            raise WaitedError(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("trace", [0, 2])
@pytest.mark.parametrize("cases", [by_hand.CASES, by_hand.CASES[-3:]], ids=["drafts", "no drafts"])
def test_a_step_does_not_wait(cases: list[Any], trace: int) -> None:
    batch, runner = by_hand.batch_of(cases), by_hand.runner_of(cases, trace)
    runner.plan = {name: one._replace(temperature=0.5) for name, one in runner.plan.items()}
    output, logits = by_hand.output_of(cases), by_hand.logits_of(cases)
    with NoWaiting():
        runner.replays = runner.table.replays(batch.idx_mapping, batch.positions[: len(cases)])
        points, logits = runner.test(logits, batch)
        runner.end_at_points(output, points, batch)


def test_second_rows_do_not_wait() -> None:
    cases = by_hand.TWO_ROWS
    batch, runner = by_hand.batch_of(cases), by_hand.runner_of(cases, 1)
    batch.has_structured_output_reqs = True
    runner.second_rows = ["0", "2"]
    logits, second = by_hand.logits_of(cases), torch.zeros(2, by_hand.VOCAB)
    with NoWaiting():
        points, logits = runner.test(logits, batch)
        runner.take_second(points, logits, second, batch)


def test_a_request_that_comes_does_not_wait() -> None:
    table = GateTable(4, torch.device("cpu"))
    with NoWaiting():
        table.add(1, 0.5, 0.3)
        table.add(2, None)


def test_the_mapping_of_adapters_does_not_wait() -> None:
    wrapper: Any = by_hand.SimpleNamespace(
        _token_lora_indices=torch.zeros(8, dtype=torch.long),
        _sampler_indices=torch.zeros(8, dtype=torch.long),
    )
    meta, slots = LoRAKernelMeta.make(2, 8, "cpu"), all_slots(2, torch.device("cpu"))
    starts = torch.tensor([0, 1, 5])
    with NoWaiting():
        base = torch.tensor([True, False])
        token = base.repeat_interleave(starts.diff(), output_size=5)
        token[starts[:-1]] = base
        mask_loras(wrapper, token, base)
        prepare_on_device(meta, wrapper._token_lora_indices[:5], slots)
    with pytest.raises(WaitedError), NoWaiting():  # vLLM's own
        meta.prepare_tensors(wrapper._token_lora_indices[:5])


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: 1 if x.any() else 0,
        lambda x: x.long().repeat_interleave(x.long()),
        lambda x: x.unique(),
    ],
)
def test_what_waits_is_found(wait: Any) -> None:
    with pytest.raises(WaitedError), NoWaiting():
        wait(torch.arange(4.0))


def touched(meta: LoRAKernelMeta, slots: int) -> dict[int, int]:
    """token -> slot, as the kernels go through the metadata (lora_shrink_op.py)."""
    if bool(meta.no_lora_flag_cpu):
        return {}
    found: dict[int, int] = {}
    for entry in range(slots + 1):
        slot = int(meta.active_lora_ids[entry])
        start, count = int(meta.lora_token_start_loc[entry]), int(meta.num_tokens_per_lora[entry])
        for token in meta.token_indices_sorted_by_lora_ids[start : start + count].tolist():
            if slot >= 0:
                assert token not in found
                found[token] = slot
    return found


def test_the_kernels_do_the_same_work() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(200):
        slots, tokens = (int(torch.randint(1, most, (), generator=generator)) for most in (9, 65))
        mapping = torch.randint(-1, slots, (tokens,), generator=generator)
        if trial % 5 == 0:
            mapping = torch.full((tokens,), -1)
        theirs, ours = (LoRAKernelMeta.make(slots, 128, "cpu") for _ in range(2))
        ours.lora_token_start_loc.fill_(77)  # of a step before
        theirs.prepare_tensors(mapping)
        prepare_on_device(ours, mapping, all_slots(slots, torch.device("cpu")))
        wanted = {at: slot for at, slot in enumerate(mapping.tolist()) if slot >= 0}
        assert touched(theirs, slots) == touched(ours, slots) == wanted
