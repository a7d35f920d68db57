"""Replay, the worker's half, in vLLM's V1 model runner (the CPU build; synchronous scheduling).

Which tokens run with the adapter on is known before the step, so vLLM's own LoRA mapping says it:
rows of gated requests name no LoRA, except at their decision points. The test stands at the entry
of the sampler, after grammar masks and before bias, penalties and temperature; a row whose gate
opens is discarded the way vLLM discards the rows of an unfinished prompt.

Written for vLLM 0.32 (v1/worker/gpu_model_runner.py, v1/worker/lora_model_runner_mixin.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from adapters.gate import entropy, opens
from serving.engine.evidence import Evidence, gather
from serving.engine.plan import EMPTY, Plan, plan_of


class GateRunnerV1(CPUModelRunner):
    """The CPU model runner with a gate."""

    _plan: Plan = EMPTY
    _evidence: Evidence

    def execute_model(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        self._plan = plan_of(scheduler_output)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def set_active_loras(
        self,
        input_batch: Any,
        num_scheduled_tokens: np.ndarray,
        num_sampled_tokens: np.ndarray | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not self._plan:
            super().set_active_loras(
                input_batch, num_scheduled_tokens, num_sampled_tokens, *args, **kwargs
            )
            return
        num_reqs = input_batch.num_reqs
        rows = input_batch.request_lora_mapping[:num_reqs].copy()  # LoRA id of each row, 0: base
        corrected: list[tuple[int, int]] = []  # (token, LoRA id)
        starts = np.concatenate(([0], np.cumsum(num_scheduled_tokens)))
        lasts: list[tuple[int, int]] = []  # (row, LoRA id) where the sampled position is corrected
        for request_id, step in self._plan.items():
            row = input_batch.req_id_to_index[request_id]
            lora, rows[row] = rows[row], 0
            if not step.corrected:
                continue
            computed = int(input_batch.num_computed_tokens_cpu[row])
            tokens = int(num_scheduled_tokens[row])
            for position in step.corrected:
                if computed <= position < computed + tokens:
                    corrected.append((int(starts[row]) + position - computed, lora))
                    if position == computed + tokens - 1:
                        lasts.append((row, lora))
        token_mapping = rows.repeat(num_scheduled_tokens)
        for token, lora in corrected:
            token_mapping[token] = lora
        for row, lora in lasts:
            rows[row] = lora
        if num_sampled_tokens is not None:
            rows = rows.repeat(num_sampled_tokens)
        self._set_active_loras(
            tuple(rows.tolist()),
            tuple(token_mapping.tolist()),
            set(input_batch.lora_id_to_lora_request.values()),
            *args,
            **kwargs,
        )

    def _sample(self, logits: torch.Tensor | None, *args: Any, **kwargs: Any) -> Any:
        self._evidence = {}
        if logits is not None and any(step.gates for step in self._plan.values()):
            self._gate(logits)
        return super()._sample(logits, *args, **kwargs)

    def _gate(self, logits: torch.Tensor) -> None:
        """Discard the rows whose base distribution is too uncertain to sample from."""
        index = self.input_batch.req_id_to_index
        gating = [(index[name], step.tau, name) for name, step in self._plan.items() if step.gates]
        rows = [row for row, _, _ in gating]
        h = entropy(logits if len(rows) == logits.shape[0] else logits[rows])
        if len(rows) == logits.shape[0]:
            h = h[rows]
        opened = opens(h, torch.tensor([tau for _, tau, _ in gating]))
        if self.parallel_config.tensor_parallel_size > 1:
            # All ranks hold the same logits; rounding must not make them disagree all the same.
            opened = get_tp_group().broadcast(opened.to(torch.uint8), src=0).bool()
        for which in opened.nonzero().flatten().tolist():
            row, _, name = gating[which]
            self.discard_request_mask.np[row] = True
            if self._plan[name].trace:
                self._evidence[name] = gather(logits[row], float(h[which]))

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        result = super().sample_tokens(*args, **kwargs)
        if getattr(self, "_evidence", None):
            result.gate_evidence = self._evidence
        return result
