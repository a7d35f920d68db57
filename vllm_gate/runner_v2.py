"""Replay, the worker's half, in vLLM's V2 model runner (GPUs; either kind of scheduling).

A position whose gate opens counts as a rejected draft token, as do those drafted behind it: vLLM's
own post-processing takes them back, and the next step computes that position again, adapter on. Its
slot is -1, at which vLLM's kernels write no keys and values; it is set in vLLM's own buffer, which
CUDA graphs read. The noise that samples is keyed by seed and position, so nothing has to be saved.

A request may have a second row in a step (two_rows.py), which is a replay like any other, of the
position that the first row computes in that very step.

Nothing here waits for the device: tests/vllm_gate/test_no_waiting.py.

Written for vLLM 0.32 (v1/worker/gpu/model_runner.py, v1/worker/gpu/sample/sampler.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.layers import LoRAMappingType
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.async_utils import async_copy_to_np
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from vllm_gate import patches
from vllm_gate.base_top_tokens import BaseView, StepViews, attach, best
from vllm_gate.device_state import (
    GateTable,
    Unmasked,
    all_slots,
    mask_loras,
    prepare_on_device,
)
from vllm_gate.step_plan import EMPTY, Plan, plan_of
from vllm_gate.two_rows import SECOND, with_second_rows, without_second_rows

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


class Points(NamedTuple):
    """Where the gate opens in a step, if all drafts before that position hold."""

    first: torch.Tensor  # [R] which of the request's rows of logits; beyond all of them: none
    row: torch.Tensor  # [R] that row among all rows; anywhere where there is none
    h: torch.Tensor  # [L] entropies
    seen: tuple[torch.Tensor, ...]  # [traced requests, ...] what `best` sees there
    corrected: torch.Tensor  # [R] the gate opens, and the request's second row gives the token


class Views(NamedTuple):
    """What `_attach` tells of a step, on its way to the host."""

    starts: np.ndarray  # [R + 1] the requests' first rows of logits
    traced: list[int]  # the requests with a trace
    tensors: list[np.ndarray]  # opened, corrected, row, replays, h, and what `best` sees


class GateSampler(Sampler):
    """The sampler, behind the gate."""

    runner: GateV2

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        runner = self.runner
        if runner.profiling:
            logits = runner.rehearse(logits, input_batch)
        if not runner.plan:
            return super().__call__(logits, input_batch)
        count = len(input_batch.req_ids)
        second = logits[count:] if runner.second_rows else None
        if second is not None:
            logits, places = logits[:count], input_batch.logits_indices[:count]
            input_batch = replace(input_batch, logits_indices=places)
        # The stock sampler may write to the logits, so they are looked at before.
        points, logits = runner.test(logits, input_batch)
        if second is not None:
            points, logits = runner.take_second(points, logits, second, input_batch)
        output = super().__call__(logits, input_batch)
        return runner.end_at_points(output, points, input_batch)


class GateRejectionSampler(RejectionSampler):
    """The rejection sampler, behind the gate: drafts count up to the first decision point."""

    runner: GateV2

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        runner = self.runner
        if not runner.plan:
            return super().__call__(logits, input_batch, draft_logits, invalid_drafts)
        points, logits = runner.test(logits, input_batch)
        # Verified as a block, drafts before the point would hang on those behind it.
        behind = input_batch.expanded_local_pos > points.first[_requests(input_batch, logits)]
        invalid = behind if invalid_drafts is None else behind | invalid_drafts
        output = super().__call__(logits, input_batch, draft_logits, invalid)
        return runner.end_at_points(output, points, input_batch)


def _requests(batch: InputBatch, logits: torch.Tensor) -> torch.Tensor:
    """[L] the number, in the batch, of the request that each row of logits belongs to."""
    counts = batch.cu_num_logits.diff()
    numbers = torch.arange(len(counts), device=counts.device)
    return numbers.repeat_interleave(counts, output_size=logits.shape[0])


class GateV2(Runner):
    """What is changed in a V2 model runner; mixed into the platform's class."""

    plan: Plan = EMPTY
    table: GateTable
    views: Views | None = None
    replays: torch.Tensor  # [R], of the step under way
    second_rows: Sequence[str] = ()  # requests that have one in the step under way
    profiling = False  # the memory that a step takes is being measured
    _last: torch.Tensor  # [R] each request's last known token among those of the step
    _batch: InputBatch | None = None

    def load_model(self, load_dummy_weights: bool = False, *args: Any, **kwargs: Any) -> None:
        super().load_model(load_dummy_weights, *args, **kwargs)
        if type(self.sampler) is not Sampler or self.batch_sharder is not None:
            raise ValueError("the gate does not work with this sampler; serve with --gate off")
        # The stock method makes the samplers and has no other way in.
        self.sampler.__class__ = GateSampler
        cast("GateSampler", self.sampler).runner = self
        if self.rejection_sampler is not None:
            if type(self.rejection_sampler) is not RejectionSampler:
                raise ValueError("the gate does not work with this sampler; serve with --gate off")
            self.rejection_sampler.__class__ = GateRejectionSampler
            cast("GateRejectionSampler", self.rejection_sampler).runner = self
        self.table = GateTable(self.max_num_reqs, self.device)
        if self.lora_config is None:
            return  # no adapters, so no gate that opens
        manager = self.lora_manager._adapter_manager
        for wrapper in manager.punica_wrapper_mapping.values():
            self._mask_after(wrapper)
            self._without_waiting(wrapper)

    def _without_waiting(self, wrapper: PunicaWrapperBase) -> None:
        """What the LoRA kernels read, made on the device in steps with a gate."""
        assert self.lora_config is not None
        slots = all_slots(self.lora_config.max_loras, self.device)
        for name in ("token_mapping_meta", "prompt_mapping_meta"):
            meta = getattr(wrapper, name, None)
            if meta is None:
                continue  # not a GPU's wrapper

            def prepare(mapping: torch.Tensor, meta: Any = meta, stock: Any = None) -> None:
                if self.plan and self._batch is not None:
                    prepare_on_device(meta, mapping, slots)
                else:
                    stock(mapping)

            owner = "vllm.lora.ops.triton_ops.lora_kernel_metadata:LoRAKernelMeta"
            ours = partial(prepare, stock=meta.prepare_tensors)
            patches.wrap_instance(owner, "prepare_tensors", meta, ours)

    def _mask_after(self, wrapper: PunicaWrapperBase) -> None:
        """Between vLLM's mapping of tokens to LoRAs and what its kernels make of that."""
        stock = wrapper._update_base_metadata
        unmasked = Unmasked(wrapper)

        def update(
            mapping: LoRAMapping,
            lora_index_to_id: list[int | None],
            max_loras: int,
            vocab_size: int,
        ) -> None:
            key = (mapping.index_mapping, mapping.prompt_mapping, tuple(lora_index_to_id))
            if not unmasked.restore(key):
                stock(mapping, lora_index_to_id, max_loras, vocab_size)
                unmasked.save(key)
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

    def execute_model(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> ModelRunnerOutput | IntermediateTensors | None:
        self.plan = plan_of(scheduler_output)
        self._batch = None
        self.second_rows = [
            name
            for name in scheduler_output.num_scheduled_tokens
            if name in self.plan and self.plan[name].two_rows
        ]
        if not self.second_rows:
            return super().execute_model(scheduler_output, *args, **kwargs)
        count = len(scheduler_output.num_scheduled_tokens)
        wider = with_second_rows(scheduler_output, self.second_rows)
        result = super().execute_model(wider, *args, **kwargs)
        state = self.execute_model_state
        if state is not None:  # from here on a request has one row again
            narrow = without_second_rows(state.input_batch, count)
            self.execute_model_state = state._replace(input_batch=narrow)
            self.replays = self.replays[:count]
        return result

    def gather_batch_req_state(
        self, scheduler_output: SchedulerOutput, dummy_run: bool
    ) -> tuple[BatchReqState | None, int | None]:
        index = self.req_states.req_id_to_index
        second = {} if dummy_run else {name + SECOND: index[name] for name in self.second_rows}
        index.update(second)
        try:
            return super().gather_batch_req_state(scheduler_output, dummy_run)
        finally:
            for name in second:
                del index[name]

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
            slots = batch.idx_mapping
            last = self._last = batch.logits_indices[batch.cu_num_logits[:-1]]  # before any draft
            positions = batch.positions[last]
            self.replays = self.table.replays(slots, positions)
            if self.second_rows:
                self.replays[-len(self.second_rows) :] = True
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
            last = self._last
            mappings[:, last] = mappings[:, last].masked_fill(self.replays, PAD_SLOT_ID)
        return blocks, mappings

    def test(self, logits: torch.Tensor, batch: InputBatch) -> tuple[Points, torch.Tensor]:
        """Where the gate opens, and the logits [L, V] to sample from."""
        slots, place = batch.expanded_idx_mapping, batch.expanded_local_pos
        request = _requests(batch, logits)
        replays = self.replays[request] & (place == 0)
        opens, h = self.table.test(logits, slots, replays)
        never = torch.iinfo(place.dtype).max
        first = torch.full_like(self.replays, never, dtype=place.dtype)
        first.scatter_reduce_(0, request, place.masked_fill(~opens, never), "amin")
        row = (batch.cu_num_logits[:-1] + first.where(first < never, 0)).long()
        # Sorting takes longer than all else here.
        traced = self._traced(batch)
        seen = best(logits[row[self._to_device(traced)]], traced=True) if traced else ()
        if any(step.temperature != 1 for step in self.plan.values()):
            logits = self.table.sharpen(logits, slots, replays)
        return Points(first, row, h, seen, torch.zeros_like(self.replays)), logits

    def _traced(self, batch: InputBatch) -> list[int]:
        """The requests, by their number in the batch, that ask for a trace."""
        plan = self.plan
        return [at for at, name in enumerate(batch.req_ids) if name in plan and plan[name].trace]

    def _to_device(self, numbers: list[int]) -> torch.Tensor:
        return async_tensor_h2d(numbers, device=self.device, dtype=torch.int64)

    def take_second(
        self, points: Points, logits: torch.Tensor, second: torch.Tensor, batch: InputBatch
    ) -> tuple[Points, torch.Tensor]:
        """The points and the logits [R, V], with those of second rows where the gate opens."""
        number = {name: at for at, name in enumerate(batch.req_ids)}
        rows = self._to_device([number[name] for name in self.second_rows])
        opened = self._agreed(points.first[rows] == 0)
        first = logits[rows]
        if batch.has_structured_output_reqs:  # vLLM masks the first row alone
            second = second.masked_fill(first.isneginf(), float("-inf"))
        if any(step.temperature != 1 for step in self.plan.values()):
            slots = batch.idx_mapping[rows]
            second = self.table.sharpen(second, slots, torch.ones_like(opened))
        logits = logits.index_copy(0, rows, second.to(logits.dtype).where(opened[:, None], first))
        corrected = points.corrected.index_copy(0, rows, opened)
        never = torch.iinfo(points.first.dtype).max
        beyond = points.first.masked_fill(corrected, never)
        return points._replace(first=beyond, corrected=corrected), logits

    def _agreed(self, opened: torch.Tensor) -> torch.Tensor:
        """The first rank's answer: all hold the same logits, but rounding might tell them apart."""
        if self.parallel_config.tensor_parallel_size == 1:
            return opened
        return get_tp_group().broadcast(opened.to(torch.uint8), src=0).bool()

    def rehearse(self, logits: torch.Tensor, batch: InputBatch) -> torch.Tensor:
        """What a step takes of memory, for vLLM to measure: every request gated and traced."""
        slots = batch.idx_mapping
        self.table.test(logits, slots, torch.zeros_like(slots, dtype=torch.bool))
        best(logits, traced=True)
        return self.table.sharpen(logits, slots, torch.ones_like(slots, dtype=torch.bool))

    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> None:
        self.profiling = self.lora_config is not None
        try:
            super()._dummy_sampler_run(hidden_states)
        finally:
            self.profiling = False

    def end_at_points(
        self, output: SamplerOutput, points: Points, batch: InputBatch
    ) -> SamplerOutput:
        """The sampler's output without the tokens at and behind a decision point.

        Where a draft before the point was rejected, the step has not reached it: the last token is
        then another than the draft, which the point's row was computed for. A prompt that is not
        finished samples nothing, and reaches none.
        """
        opened = self._agreed(output.num_sampled > points.first)
        positions = batch.positions[batch.logits_indices[points.row]]
        self.table.note(batch.idx_mapping, positions, opened)
        rejected = batch.cu_num_logits.diff() - points.first
        output.num_sampled = torch.where(opened, points.first, output.num_sampled)
        output.num_rejected = torch.where(opened, rejected, output.num_rejected)
        tensors = (opened, points.corrected, points.row, self.replays, points.h, *points.seen)
        copies = [async_copy_to_np(tensor) for tensor in tensors]
        self.views = Views(batch.cu_num_logits_np, self._traced(batch), copies)
        return output

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


def _attach(result: AsyncOutput, plan: Plan, views: Views) -> None:
    """Have an asynchronous result bring what the base thought at its decision points."""
    stock = result.get_output
    starts, traced, (opened, corrected, rows, replays, h, *seen) = views
    place_of = {at: place for place, at in enumerate(traced)}

    def view(at: int) -> BaseView:
        place = place_of.get(at)
        sights = () if place is None else (values[place].tolist() for values in seen)
        return BaseView(float(h[rows[at]]), *sights)

    def shut(at: int, tokens: int) -> list[BaseView]:
        gated = int(replays[at] or corrected[at])  # the first of them
        return [BaseView(float(h[starts[at] + place])) for place in range(gated, tokens)]

    def get_output() -> ModelRunnerOutput:
        output = stock()  # waits for the copies
        found = {
            name: StepViews(
                view(at) if opened[at] else None,
                view(at) if corrected[at] else None,
                shut(at, len(output.sampled_token_ids[at])) if plan[name].trace > 1 else (),
            )
            for at, name in enumerate(output.req_ids)
            if name in plan and (opened[at] or corrected[at] or plan[name].trace > 1)
        }
        attach(output, found)
        return output

    owner = "vllm.v1.worker.gpu.async_utils:AsyncOutput"
    patches.wrap_instance(owner, "get_output", result, get_output)


class GateRunnerV2(GateV2, model_runner.GPUModelRunner):
    """The GPU model runner with a gate."""
