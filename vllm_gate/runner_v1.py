"""Replay, the worker's half, in vLLM's V1 model runner (the CPU build; synchronous scheduling).

Which rows replay is known before the step. In vLLM's own LoRA mapping they name their adapter, and
the other rows of gated requests name none. A replay's slot is -1, at which vLLM's kernels write no
keys and values. The test stands at the entry of the sampler, after grammar masks and before bias,
penalties and temperature. There too the logits of replays are divided by the gate's temperature.

A request whose gate opens gives no token in this step: its row is discarded the way vLLM discards
the rows of an unfinished prompt. With speculative decoding it has a row for each draft as well, and
the tokens before the decision point stay.

Written for vLLM 0.32 (v1/worker/gpu_model_runner.py, v1/worker/lora_model_runner_mixin.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.layers import LoRAMappingType
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID

from adapters.gate import entropy, opens
from vllm_gate.base_top_tokens import BaseView, BaseViews, StepViews, attach, best
from vllm_gate.cpu.seeds import SeededRows
from vllm_gate.guidance import guide
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


class _Test(NamedTuple):
    """A position at which the gate is asked."""

    name: str  # of the request
    place: int  # among the request's rows of logits
    row: int  # among all rows
    tau: float  # nats


class Point(NamedTuple):
    """The first position of a request, in this step, where the gate opens."""

    place: int
    view: BaseView


class Tested(NamedTuple):
    """What the gate says of one request's positions, if all drafts before them hold."""

    opened: Point | None
    shut: list[BaseView]  # with `trace=2`: the positions before that one


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
        if num_sampled_tokens is None:
            num_sampled_tokens = np.ones_like(num_scheduled_tokens)
        rows = input_batch.request_lora_mapping[: input_batch.num_reqs].copy()  # LoRA ids, 0: base
        index = input_batch.req_id_to_index
        rows[[index[name] for name, step in self._plan.items() if not step.replays]] = 0
        if not rows.any():  # most steps: nothing is looked up, and vLLM finds the mapping it has
            samples, positions = int(num_sampled_tokens.sum()), int(num_scheduled_tokens.sum())
            self._set_active_loras((0,) * samples, (0,) * positions, set(), mapping_type)
            return
        replays = [index[name] for name, step in self._plan.items() if step.replays]
        tokens = _of_first(rows, num_scheduled_tokens, replays)
        used = np.unique(tokens)  # the others need no slot in this step
        known = input_batch.lora_id_to_lora_request
        guided = self._guided()
        heads = rows.copy()
        heads[guided] = 0  # their rows of logits follow the guidance prompt; further ones are added
        sampled = _of_first(heads, num_sampled_tokens, replays).tolist() + rows[guided].tolist()
        self._set_active_loras(
            tuple(sampled),
            tuple(tokens.tolist()),
            {known[lora] for lora in used.tolist() if lora},
            mapping_type,
        )

    def _guided(self) -> list[int]:
        """The requests, by their number in the batch, whose replay is guided in this step."""
        index = self.input_batch.req_id_to_index
        return [index[name] for name, step in self._plan.items() if step.guidance is not None]

    def _prepare_inputs(
        self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray
    ) -> tuple[torch.Tensor, SpecDecodeMetadata | None, int]:
        batch = self.input_batch
        for name, step in self._plan.items():
            if step.guidance is not None:
                row, prompt = batch.req_id_to_index[name], step.guidance.prompt
                first = batch.num_computed_tokens_cpu[row] + 1
                batch.token_ids_cpu[row, first : first + len(prompt)] = prompt
        indices, drafts, most = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        guided = self._guided()
        if guided:  # the logits of the replays themselves come after all others
            replayed = torch.from_numpy(self.query_start_loc.np[guided]).to(indices)
            indices = torch.cat([indices, replayed])
        return indices, drafts, most

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
            tokens = self.query_start_loc.np[replays]  # their first ones
            for slots in by_group.values():
                slots[tokens] = PAD_SLOT_ID
        return by_group, by_layer

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        self._views = {}
        if logits is None or not self._plan:
            return super()._sample(logits, spec_decode_metadata)
        rows = self._rows(spec_decode_metadata)
        logits = self._guide(logits, rows)
        self._sharpen(logits, rows)
        tested = self._test(logits, rows)
        index = self.input_batch.req_id_to_index
        for name, step in self._plan.items():
            if step.replays and not step.samples:
                self.discard_request_mask.np[index[name]] = True
        for name, (opened, _) in tested.items():
            if opened is not None and opened.place == 0:  # with no drafts vLLM looks here alone
                self.discard_request_mask.np[index[name]] = True
        output = super()._sample(logits, spec_decode_metadata)
        self._end_at_points(output.sampled_token_ids, tested)
        return output

    def _rows(self, spec_decode_metadata: SpecDecodeMetadata | None) -> dict[str, range]:
        """The rows of logits of each gated request: its last known position, and its drafts'."""
        index = self.input_batch.req_id_to_index
        if spec_decode_metadata is None:
            return {name: range(index[name], index[name] + 1) for name in self._plan}
        ends = np.cumsum(np.array(spec_decode_metadata.num_draft_tokens) + 1)
        starts = np.concatenate([[0], ends])
        return {name: range(starts[index[name]], ends[index[name]]) for name in self._plan}

    def _guide(self, logits: torch.Tensor, rows: dict[str, range]) -> torch.Tensor:
        """The logits without the rows that `_prepare_inputs` added, those of replays guided."""
        guided = [
            (rows[name][0], step.guidance.scale)
            for name, step in self._plan.items()
            if step.guidance is not None
        ]
        count = logits.shape[0] - len(guided)
        logits, replayed = logits[:count], logits[count:]
        for (row, scale), conditional in zip(guided, replayed, strict=True):
            logits[row] = guide(conditional, logits[row], scale)
        return logits

    def _sharpen(self, logits: torch.Tensor, rows: dict[str, range]) -> None:
        """Divide the logits of replays, in place."""
        for name, step in self._plan.items():
            if step.replays and step.temperature != 1:
                logits[rows[name][0]] /= step.temperature

    def _test(self, logits: torch.Tensor, rows: dict[str, range]) -> dict[str, Tested]:
        """Where the base's distribution is too uncertain to sample from."""
        tests = [
            _Test(name, place, row, step.tau)
            for name, step in self._plan.items()
            if step.samples
            for place, row in enumerate(rows[name])
            if place or not step.replays
        ]
        if not tests:
            return {}
        h = entropy(logits, [test.row for test in tests]).numpy()
        opened = opens(h, np.array([test.tau for test in tests], dtype=np.float32))
        if self.parallel_config.tensor_parallel_size > 1:
            # All ranks hold the same logits; rounding must not make them disagree all the same.
            agreed = torch.from_numpy(opened.astype(np.uint8))
            opened = get_tp_group().broadcast(agreed, src=0).numpy()
        return self._seen(logits, tests, h, opened)

    def _seen(
        self, logits: torch.Tensor, tests: list[_Test], h: np.ndarray, opened: np.ndarray
    ) -> dict[str, Tested]:
        """Each request's first decision point, and with `trace=2` what lies before it."""
        first: dict[str, int] = {}
        for which in opened.nonzero()[0].tolist():
            first.setdefault(tests[which].name, which)
        points: dict[str, Point] = {}
        if first:
            traced = any(self._plan[name].trace for name in first)
            # Before the sampler, which may write to the logits.
            seen = best(logits[[tests[which].row for which in first.values()]], traced)
            for (name, which), *its_best in zip(
                first.items(), *(tensor.tolist() for tensor in seen), strict=True
            ):
                points[name] = Point(tests[which].place, BaseView(float(h[which]), *its_best))
        views: dict[str, list[BaseView]] = {name: [] for name in points}
        for which, test in enumerate(tests):
            if self._plan[test.name].trace > 1 and which < first.get(test.name, len(tests)):
                views.setdefault(test.name, []).append(BaseView(float(h[which])))
        return {name: Tested(points.get(name), shut) for name, shut in views.items()}

    def _end_at_points(self, sampled: torch.Tensor, tested: dict[str, Tested]) -> None:
        """Take the tokens at and behind a decision point out of `sampled` [R, drafts + 1].

        Where a draft before the point was rejected, the step has not reached it: the last token is
        then another than the draft, which the point's row was computed for.
        """
        for name, (point, shut) in tested.items():
            tokens = sampled[self.input_batch.req_id_to_index[name]]
            opened: BaseView | None = None
            if point is not None and (not point.place or int(tokens[point.place]) >= 0):
                opened = point.view
                tokens[point.place :] = PLACEHOLDER_TOKEN_ID
            untested = int(self._plan[name].replays)  # the replay's own token
            count = int((tokens >= 0).sum()) - untested if shut else 0
            self._views[name] = StepViews(opened, shut=shut[: max(count, 0)])

    # vLLM's decorator is a class, whose type says nothing of the method.
    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Result:  # type: ignore[override]
        result: Result = super().sample_tokens(grammar_output)  # type: ignore[type-var,assignment]
        self._plan = EMPTY  # dummy steps have none
        if getattr(self, "_views", None):
            attach(cast("ModelRunnerOutput", result), self._views)
        return result


def _of_first(rows: np.ndarray, counts: np.ndarray, replays: list[int]) -> np.ndarray:
    """The LoRA id of each of a request's `counts`; a replay's are the base's but for the first."""
    spread = rows.repeat(counts)
    starts = counts.cumsum() - counts
    for row in replays:
        spread[starts[row] + 1 : starts[row] + counts[row]] = 0
    return spread
