"""Replay, the worker's half, in vLLM's V1 model runner (the CPU build; synchronous scheduling).

Which rows replay is known before the step. In vLLM's own LoRA mapping they name their adapter, and
the other rows of gated requests name none. A replay's slot is -1, at which vLLM's kernels write no
keys and values. The test stands at the entry of the sampler, after grammar masks and before bias,
penalties and temperature; a row whose gate opens is discarded the way vLLM discards the rows of an
unfinished prompt. There too the logits of replays are divided by the gate's temperature.

Written for vLLM 0.32 (v1/worker/gpu_model_runner.py, v1/worker/lora_model_runner_mixin.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.layers import LoRAMappingType
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.output import SchedulerOutput

from adapters.gate import entropy, opens
from vllm_gate.base_top_tokens import BaseView, BaseViews, attach, best
from vllm_gate.cpu.seeds import SeededRows
from vllm_gate.step_plan import EMPTY, Plan, plan_of

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput, SamplerOutput
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.ubatch_utils import UBatchSlices

    Result = ModelRunnerOutput | AsyncModelRunnerOutput | IntermediateTensors
    SlotMappings = tuple[
        dict[int, torch.Tensor] | None,  # by KV cache group
        dict[str, torch.Tensor] | list[dict[str, torch.Tensor]] | None,  # by layer
    ]


class GateRunnerV1(SeededRows):
    """The CPU model runner with a gate."""

    _plan: Plan = EMPTY
    _views: BaseViews

    def execute_model(
        self,
        scheduler_output: SchedulerOutput,
        intermediate_tensors: IntermediateTensors | None = None,
    ) -> Result | None:
        self._plan = plan_of(scheduler_output)
        return super().execute_model(scheduler_output, intermediate_tensors)

    def set_active_loras(
        self,
        input_batch: InputBatch,
        num_scheduled_tokens: np.ndarray,
        num_sampled_tokens: np.ndarray | None = None,
        mapping_type: LoRAMappingType = LoRAMappingType.LANGUAGE,
    ) -> None:
        if not self._plan:
            super().set_active_loras(
                input_batch, num_scheduled_tokens, num_sampled_tokens, mapping_type
            )
            return
        rows = input_batch.request_lora_mapping[: input_batch.num_reqs].copy()  # LoRA ids, 0: base
        index = input_batch.req_id_to_index
        rows[[index[name] for name, step in self._plan.items() if not step.replays]] = 0
        tokens = rows.repeat(num_scheduled_tokens)  # one token where a row replays
        if num_sampled_tokens is not None:
            rows = rows.repeat(num_sampled_tokens)
        used = np.unique(tokens)  # the others need no slot in this step
        known = input_batch.lora_id_to_lora_request
        self._set_active_loras(
            tuple(rows.tolist()),
            tuple(tokens.tolist()),
            {known[lora] for lora in used.tolist() if lora},
            mapping_type,
        )

    def _get_slot_mappings(
        self,
        num_tokens_padded: int,
        num_reqs_padded: int,
        num_tokens_unpadded: int,
        ubatch_slices: UBatchSlices | None = None,
    ) -> SlotMappings:
        by_group, by_layer = super()._get_slot_mappings(
            num_tokens_padded, num_reqs_padded, num_tokens_unpadded, ubatch_slices
        )
        index = self.input_batch.req_id_to_index
        replays = [index[name] for name, step in self._plan.items() if step.replays]
        if replays and by_group is not None:
            tokens = self.query_start_loc.np[replays]  # their only ones
            for slots in by_group.values():
                slots[tokens] = PAD_SLOT_ID
        return by_group, by_layer

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        self._views = {}
        if logits is not None and self._plan:
            self._sharpen(logits)
            self._gate(logits)
        return super()._sample(logits, spec_decode_metadata)

    def _sharpen(self, logits: torch.Tensor) -> None:
        """Divide the logits of replays, in place."""
        index = self.input_batch.req_id_to_index
        for name, step in self._plan.items():
            if step.replays and step.temperature != 1:
                logits[index[name]] /= step.temperature

    def _gate(self, logits: torch.Tensor) -> None:
        """Discard the rows whose base distribution is too uncertain to sample from."""
        index = self.input_batch.req_id_to_index
        gating = [(index[name], step.tau, name) for name, step in self._plan.items() if step.gates]
        if not gating:
            return
        rows = [row for row, _, _ in gating]
        # Single rows are taken out of numpy's arrays, where that costs a tenth of torch's.
        if len(rows) == logits.shape[0]:
            h = entropy(logits).numpy()[rows]
        else:
            h = entropy(logits[rows]).numpy()
        opened = opens(h, np.array([tau for _, tau, _ in gating], dtype=np.float32))
        if self.parallel_config.tensor_parallel_size > 1:
            # All ranks hold the same logits; rounding must not make them disagree all the same.
            agreed = torch.from_numpy(opened.astype(np.uint8))
            opened = get_tp_group().broadcast(agreed, src=0).numpy()
        for which, (_, _, name) in enumerate(gating):
            if self._plan[name].trace > 1:
                self._views[name] = BaseView(float(h[which]))
        found = opened.nonzero()[0].tolist()
        if not found:
            return
        traced = any(self._plan[gating[which][2]].trace for which in found)
        seen = (
            tensor.tolist() for tensor in best(logits[[rows[which] for which in found]], traced)
        )
        for which, *its_best in zip(found, *seen, strict=True):
            row, _, name = gating[which]
            self.discard_request_mask.np[row] = True
            self._views[name] = BaseView(float(h[which]), *its_best)

    # vLLM's decorator is a class, whose type says nothing of the method.
    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Result:  # type: ignore[override]
        result: Result = super().sample_tokens(grammar_output)  # type: ignore[type-var,assignment]
        self._plan = EMPTY  # dummy steps have none
        if getattr(self, "_views", None):
            attach(cast("ModelRunnerOutput", result), self._views)
        return result
