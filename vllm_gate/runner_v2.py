"""Replay, the worker's half, in vLLM's V2 model runner (GPUs; either kind of scheduling).

A position whose gate opens counts as a rejected draft token, as do those drafted behind it: vLLM's
own post-processing takes them back, and the next step computes that position again, adapter on. Its
slot is -1, at which vLLM's kernels write no keys and values; it is set in vLLM's own buffer, which
CUDA graphs read. The noise that samples is keyed by seed and position, so nothing has to be saved.

Written for vLLM 0.32 (v1/worker/gpu/model_runner.py, v1/worker/gpu/sample/sampler.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.async_utils import async_copy_to_np
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from vllm_gate import patches
from vllm_gate.base_top_tokens import BaseView, StepViews, best
from vllm_gate.device_state import GateTable, mask_loras
from vllm_gate.step_plan import EMPTY, Plan, plan_of


class Points(NamedTuple):
    """Where the gate opens in a step, if all drafts before that position hold."""

    first: torch.Tensor  # [R] which of the request's rows of logits; beyond all of them: none
    row: torch.Tensor  # [R] that row among all rows; anywhere where there is none
    h: torch.Tensor  # [L] entropies
    seen: tuple[torch.Tensor, ...]  # [R, ...] what `best` sees there


class GateSampler(Sampler):
    """The sampler, behind the gate."""

    runner: GateRunnerV2

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        runner = self.runner
        if not runner.plan:
            return super().__call__(logits, input_batch)
        # The stock sampler may write to the logits, so they are looked at before.
        points, logits = runner.test(logits, input_batch)
        output = super().__call__(logits, input_batch)
        return runner.end_at_points(output, points, input_batch)


class GateRejectionSampler(RejectionSampler):
    """The rejection sampler, behind the gate: drafts count up to the first decision point."""

    runner: GateRunnerV2

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: Any,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> Any:
        runner = self.runner
        if not runner.plan:
            return super().__call__(logits, input_batch, draft_logits, invalid_drafts)
        points, logits = runner.test(logits, input_batch)
        # Verified as a block, drafts before the point would hang on those behind it.
        behind = input_batch.expanded_local_pos > points.first[_requests(input_batch, logits)]
        invalid = behind if invalid_drafts is None else behind | invalid_drafts
        output = super().__call__(logits, input_batch, draft_logits, invalid)
        return runner.end_at_points(output, points, input_batch)


def _requests(batch: Any, logits: torch.Tensor) -> torch.Tensor:
    """[L] the number, in the batch, of the request that each row of logits belongs to."""
    counts = batch.cu_num_logits.diff()
    numbers = torch.arange(len(counts), device=counts.device)
    return numbers.repeat_interleave(counts, output_size=logits.shape[0])


class GateV2:
    """What is changed in a V2 model runner; mixed into the platform's class."""

    plan: Plan = EMPTY
    table: GateTable
    views: tuple[np.ndarray, list[np.ndarray]] | None = None
    replays: torch.Tensor  # [R], of the step under way
    _last: torch.Tensor  # [R] each request's last known token among those of the step
    _batch: Any = None

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        if type(self.sampler) is not Sampler or self.batch_sharder is not None:
            raise ValueError("the gate does not work with this sampler; serve with --gate off")
        # The stock method makes the samplers and has no other way in.
        self.sampler.__class__ = GateSampler
        self.sampler.runner = self
        if self.rejection_sampler is not None:
            if type(self.rejection_sampler) is not RejectionSampler:
                raise ValueError("the gate does not work with this sampler; serve with --gate off")
            self.rejection_sampler.__class__ = GateRejectionSampler
            self.rejection_sampler.runner = self
        self.table = GateTable(self.max_num_reqs, self.device)
        if self.lora_config is None:
            return  # no adapters, so no gate that opens
        manager = self.lora_manager._adapter_manager
        for wrapper in manager.punica_wrapper_mapping.values():
            self._mask_after(wrapper)

    def _mask_after(self: Any, wrapper: Any) -> None:
        """Between vLLM's mapping of tokens to LoRAs and what its kernels make of that."""
        stock = wrapper._update_base_metadata

        def update(*args: Any, **kwargs: Any) -> None:
            stock(*args, **kwargs)
            batch = self._batch
            if not self.plan or batch is None:
                return
            starts = batch.query_start_loc[: batch.num_reqs + 1]
            gated = self.table.on[batch.idx_mapping]
            base = gated & ~self.replays
            token = gated.repeat_interleave(starts.diff(), output_size=batch.num_tokens)
            token[starts[:-1]] = base  # where a request replays, at its first token alone
            mask_loras(wrapper, token, base)

        owner = "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase"
        patches.wrap_instance(owner, "_update_base_metadata", wrapper, update)

    def execute_model(self: Any, scheduler_output: SchedulerOutput, *args: Any, **kw: Any) -> Any:
        self.plan = plan_of(scheduler_output)
        self._batch = None
        return super().execute_model(scheduler_output, *args, **kw)  # type: ignore[misc]

    def add_requests(self: Any, scheduler_output: SchedulerOutput) -> None:
        super().add_requests(scheduler_output)  # type: ignore[misc]
        for new in scheduler_output.scheduled_new_reqs:
            step = self.plan.get(new.req_id)
            slot = self.req_states.req_id_to_index[new.req_id]
            if step is None:
                self.table.add(slot, None)
            else:
                self.table.add(slot, step.tau, step.temperature)

    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = super().prepare_inputs(*args, **kwargs)  # type: ignore[misc]
        self._batch = batch
        if self.plan:
            slots = batch.idx_mapping
            last = self._last = batch.logits_indices[batch.cu_num_logits[:-1]]  # before any draft
            positions = batch.positions[last]
            self.replays = self.table.replays(slots, positions)
            # The host, ahead of the device, took a replay of the last prompt token for a decode.
            token = self.req_states.all_token_ids.gpu[slots, positions]
            ids = batch.input_ids
            ids[last] = torch.where(self.replays, token.to(ids.dtype), ids[last])
        return batch

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        blocks, mappings = super().prepare_attn(input_batch)  # type: ignore[misc]
        if self.plan:
            last = self._last
            mappings[:, last] = mappings[:, last].masked_fill(self.replays, PAD_SLOT_ID)
        return blocks, mappings

    def test(self: Any, logits: torch.Tensor, batch: Any) -> tuple[Points, torch.Tensor]:
        """Where the gate opens, and the logits [L, V] to sample from."""
        slots, place = batch.expanded_idx_mapping, batch.expanded_local_pos
        request = _requests(batch, logits)
        replays = self.replays[request] & (place == 0)
        opens, h = self.table.test(logits, slots, replays)
        never = torch.iinfo(place.dtype).max
        first = torch.full_like(self.replays, never, dtype=place.dtype)
        first.scatter_reduce_(0, request, place.masked_fill(~opens, never), "amin")
        row = (batch.cu_num_logits[:-1] + first.where(first < never, 0)).long()
        there = logits[row] if len(row) < len(logits) else logits
        seen = best(there, any(step.trace for step in self.plan.values()))
        if any(step.temperature != 1 for step in self.plan.values()):
            logits = self.table.sharpen(logits, slots, replays)
        return Points(first, row, h, seen), logits

    def end_at_points(self: Any, output: Any, points: Points, batch: Any) -> Any:
        """The sampler's output without the tokens at and behind a decision point.

        Where a draft before the point was rejected, the step has not reached it: the last token is
        then another than the draft, which the point's row was computed for. A prompt that is not
        finished samples nothing, and reaches none.
        """
        opened = output.num_sampled > points.first
        if self.parallel_config.tensor_parallel_size > 1:
            # All ranks hold the same logits; rounding must not make them disagree all the same.
            opened = get_tp_group().broadcast(opened.to(torch.uint8), src=0).bool()
        positions = batch.positions[batch.logits_indices[points.row]]
        self.table.note(batch.idx_mapping, positions, opened)
        rejected = batch.cu_num_logits.diff() - points.first
        output.num_sampled = torch.where(opened, points.first, output.num_sampled)
        output.num_rejected = torch.where(opened, rejected, output.num_rejected)
        tensors = (opened, points.row, self.replays, points.h, *points.seen)
        self.views = batch.cu_num_logits_np, [async_copy_to_np(tensor) for tensor in tensors]
        return output

    def _set_active_loras(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.plan:
            # vLLM skips a mapping equal to the last one; ours differs without its knowing.
            self.lora_manager._adapter_manager._last_mapping = None
        super()._set_active_loras(*args, **kwargs)  # type: ignore[misc]
        if self.plan:
            self.lora_manager._adapter_manager._last_mapping = None

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.views = None
        plan = self.plan
        result = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        if self.views is not None and result is not None:
            _attach(result, plan, self.views)
        return result


def _attach(result: Any, plan: Plan, views: tuple[np.ndarray, list[np.ndarray]]) -> None:
    """Have an asynchronous result bring what the base thought at its decision points."""
    stock = result.get_output
    starts, (opened, rows, replays, h, *seen) = views

    def view(at: int, row: int) -> BaseView:
        return BaseView(float(h[row]), *(values[at].tolist() for values in seen))

    def get_output() -> Any:
        output = stock()  # waits for the copies
        output.gate_views = {
            name: StepViews(
                view(at, rows[at]) if opened[at] else None,
                [
                    BaseView(float(h[starts[at] + place]))
                    for place in range(int(replays[at]), len(output.sampled_token_ids[at]))
                ]
                if plan[name].trace > 1
                else (),
            )
            for at, name in enumerate(output.req_ids)
            if name in plan and (opened[at] or plan[name].trace > 1)
        }
        return output

    owner = "vllm.v1.worker.gpu.async_utils:AsyncOutput"
    patches.wrap_instance(owner, "get_output", result, get_output)


class GateRunnerV2(GateV2, model_runner.GPUModelRunner):
    """The GPU model runner with a gate."""
