"""Replay, the worker's half, in vLLM's V2 model runner (GPUs; either kind of scheduling).

A row whose gate opens counts as one rejected draft token: vLLM's own post-processing takes its
position back, and the next step computes it again, adapter on. That row's slot is -1, at which
vLLM's kernels write no keys and values; it is set in vLLM's own buffer, which CUDA graphs read. The
noise that samples is keyed by seed and position, so nothing has to be saved.

Written for vLLM 0.32 (v1/worker/gpu/model_runner.py, v1/worker/gpu/sample/sampler.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.layers import LoRAMappingType
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.async_utils import async_copy_to_np
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_gate import patches
from vllm_gate.base_top_tokens import BaseView, attach, best
from vllm_gate.device_state import GateTable, mask_loras
from vllm_gate.step_plan import EMPTY, Plan, plan_of

if TYPE_CHECKING:
    import numpy as np
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.lora.request import LoRARequest
    from vllm.sequence import IntermediateTensors
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu.async_utils import AsyncOutput
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import BatchReqState
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    Runner = model_runner.GPUModelRunner
else:
    Runner = object  # the platform's class is mixed in


class GateSampler(Sampler):
    """The sampler, behind the gate."""

    runner: GateV2

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        runner = self.runner
        if not runner.plan:
            return super().__call__(logits, input_batch)
        slots, replays = input_batch.idx_mapping, runner.replays
        # The stock sampler may write to the logits, so they are looked at before.
        opened, h = runner.table.test(logits, slots, replays)
        seen = best(logits, any(step.trace for step in runner.plan.values()))
        if any(step.temperature != 1 for step in runner.plan.values()):
            logits = runner.table.sharpen(logits, slots, replays)
        output = super().__call__(logits, input_batch)
        opened &= output.num_sampled > 0  # a prompt that is not finished samples nothing
        if runner.parallel_config.tensor_parallel_size > 1:
            # All ranks hold the same logits; rounding must not make them disagree all the same.
            opened = get_tp_group().broadcast(opened.to(torch.uint8), src=0).bool()
        positions = input_batch.positions[input_batch.logits_indices]
        runner.table.note(slots, positions, opened)
        output.num_sampled = output.num_sampled.masked_fill(opened, 0)
        output.num_rejected = output.num_rejected.masked_fill(opened, 1)
        runner.views = [async_copy_to_np(tensor) for tensor in (opened, h, *seen)]
        return output


class GateV2(Runner):
    """What is changed in a V2 model runner; mixed into the platform's class."""

    plan: Plan = EMPTY
    table: GateTable
    views: list[np.ndarray] | None = None
    replays: torch.Tensor  # [R], of the step under way
    _batch: InputBatch | None = None

    def load_model(self, load_dummy_weights: bool = False, *args: Any, **kwargs: Any) -> None:
        super().load_model(load_dummy_weights, *args, **kwargs)
        if type(self.sampler) is not Sampler or self.batch_sharder is not None:
            raise ValueError("the gate does not work with this sampler; serve with --gate off")
        # The stock method makes the sampler and has no other way in.
        self.sampler.__class__ = GateSampler
        cast("GateSampler", self.sampler).runner = self
        self.table = GateTable(self.max_num_reqs, self.device)
        if self.lora_config is None:
            return  # no adapters, so no gate that opens
        manager = self.lora_manager._adapter_manager
        for wrapper in manager.punica_wrapper_mapping.values():
            self._mask_after(wrapper)

    def _mask_after(self, wrapper: PunicaWrapperBase) -> None:
        """Between vLLM's mapping of tokens to LoRAs and what its kernels make of that."""
        stock = wrapper._update_base_metadata

        def update(
            mapping: LoRAMapping,
            lora_index_to_id: list[int | None],
            max_loras: int,
            vocab_size: int,
        ) -> None:
            stock(mapping, lora_index_to_id, max_loras, vocab_size)
            batch = self._batch
            if not self.plan or batch is None:
                return
            counts = batch.query_start_loc[1 : batch.num_reqs + 1].diff(
                prepend=batch.query_start_loc[:1]
            )
            base = self.table.on[batch.idx_mapping] & ~self.replays
            token = base.repeat_interleave(counts, output_size=batch.num_tokens)
            mask_loras(wrapper, token, base)

        owner = "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase"
        patches.wrap_instance(owner, "_update_base_metadata", wrapper, update)

    def execute_model(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> ModelRunnerOutput | IntermediateTensors | None:
        self.plan = plan_of(scheduler_output)
        self._batch = None
        return super().execute_model(scheduler_output, *args, **kwargs)

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        super().add_requests(scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            step = self.plan.get(new.req_id)
            slot = self.req_states.req_id_to_index[new.req_id]
            if step is None:
                self.table.add(slot, None)
            else:
                self.table.add(slot, step.tau, step.temperature)

    def prepare_inputs(
        self,
        scheduler_output: SchedulerOutput,
        batch_req_state: BatchReqState,
        batch_desc: BatchExecutionDescriptor,
        num_active_loras: int,
    ) -> InputBatch:
        batch = super().prepare_inputs(
            scheduler_output, batch_req_state, batch_desc, num_active_loras
        )
        self._batch = batch
        if self.plan:
            slots, last = batch.idx_mapping, batch.logits_indices
            positions = batch.positions[last]
            self.replays = self.table.replays(slots, positions)
            # The host, ahead of the device, took a replay of the last prompt token for a decode.
            token = self.req_states.all_token_ids.gpu[slots, positions]
            ids = batch.input_ids
            ids[last] = torch.where(self.replays, token.to(ids.dtype), ids[last])
        return batch

    def prepare_attn(
        self, input_batch: InputBatch
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        blocks, mappings = super().prepare_attn(input_batch)
        if self.plan:
            last = input_batch.logits_indices
            mappings[:, last] = mappings[:, last].masked_fill(self.replays, PAD_SLOT_ID)
        return blocks, mappings

    def _set_active_loras(
        self,
        prompt_lora_mapping: tuple[int, ...],
        token_lora_mapping: tuple[int, ...],
        lora_requests: set[LoRARequest],
        mapping_type: LoRAMappingType = LoRAMappingType.LANGUAGE,
    ) -> None:
        if self.plan:
            # vLLM skips a mapping equal to the last one; ours differs without its knowing.
            self.lora_manager._adapter_manager._last_mapping = None
        super()._set_active_loras(
            prompt_lora_mapping, token_lora_mapping, lora_requests, mapping_type
        )
        if self.plan:
            self.lora_manager._adapter_manager._last_mapping = None

    def sample_tokens(
        self, grammar_output: GrammarOutput | None
    ) -> AsyncOutput | ModelRunnerOutput | None:
        self.views = None
        plan = self.plan
        result = super().sample_tokens(grammar_output)
        if self.views is not None and result is not None:
            _attach(cast("AsyncOutput", result), plan, self.views)
        return result


def _attach(result: AsyncOutput, plan: Plan, views: list[np.ndarray]) -> None:
    """Have an asynchronous result bring what the base thought at its decision points."""
    stock = result.get_output

    def get_output() -> ModelRunnerOutput:
        output = stock()  # waits for the copies
        opened, h, *seen = views
        found = {
            name: BaseView(float(h[row]), *(values[row].tolist() for values in seen))
            if opened[row]
            else BaseView(float(h[row]))
            for row, name in enumerate(output.req_ids)
            if name in plan and (opened[row] or plan[name].trace > 1)
        }
        attach(output, found)
        return output

    owner = "vllm.v1.worker.gpu.async_utils:AsyncOutput"
    patches.wrap_instance(owner, "get_output", result, get_output)


class GateRunnerV2(GateV2, model_runner.GPUModelRunner):
    """The GPU model runner with a gate."""
