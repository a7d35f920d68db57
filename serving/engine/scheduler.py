"""Replay, the scheduler's half: a position whose gate opened is computed once more.

A gated step returns no token. The position is noted, `num_computed_tokens` goes back by one as for
a rejected draft token, and the next step computes that position again, adapter on. Three rules keep
the prefix cache honest:

1. A gated request's blocks are hashed as the base's, although the request names a LoRA.
2. Nothing is shared from the last token on: whether its position is corrected is not known yet.
3. From its first decision point on a request has no block hashes: it neither shares what it wrote
   there nor takes what others computed for the same tokens.

Written for vLLM 0.32 (v1/core/sched/scheduler.py, v1/core/sched/async_scheduler.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from serving.engine import pins, report
from serving.engine.counters import HELD, count_replay
from serving.engine.evidence import Evidence, Seen
from serving.engine.hooks import check, shares_slots
from serving.engine.plan import TRACE, Plan, Step, attach, gate_of, plan_of
from serving.engine.report import REPORT


@dataclass
class Gate:
    """A gated request: its gate and the decision points found so far."""

    tau: float
    temperature: float
    trace: int  # see plan.Step
    adapter: str
    points: list[int] = field(default_factory=list)  # positions, ascending
    seen: Seen | None = None  # at the newest decision point


class Answer(NamedTuple):
    """A token about to go out."""

    gate: Gate
    position: int  # among the generated tokens, from 0
    gated: bool
    seen: Seen | None


def _hash_as_base(stock: Callable[[Request], Any]) -> Callable[[Request], Any]:
    def hasher(request: Request) -> Any:
        lora, request.lora_request = request.lora_request, None
        try:
            return stock(request)
        finally:
            request.lora_request = lora

    return hasher


class GateMixin(Scheduler):
    """A scheduler whose requests may be gated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gates: dict[str, Gate] = {}
        self._shares_slots = shares_slots(self.vllm_config)
        self._turned_away: dict[int, int] = {}  # LoRA id -> step since which it has had no slot
        # A copy, whose max_loras goes down for steps that do not run the pinned ones.
        self.lora_config: Any = copy(self.vllm_config.lora_config)
        self._slots = self.lora_config.max_loras
        coordinator = self.kv_cache_manager.coordinator
        stock_cache_blocks = coordinator.cache_blocks

        def cache_blocks(request: Request, num_computed_tokens: int) -> None:
            gate = self._gates.get(request.request_id)
            if gate is not None:
                first = gate.points[:1] or [request.num_tokens - 1]
                num_computed_tokens = min(num_computed_tokens, request.num_tokens - 1, *first)
            stock_cache_blocks(request, num_computed_tokens)

        coordinator.cache_blocks = cache_blocks

    def add_request(self, request: Request) -> None:
        gate = gate_of(request.sampling_params, request.lora_request)
        if gate is not None and request.request_id not in self.requests:
            arguments = request.sampling_params.extra_args
            self._gates[request.request_id] = Gate(
                *gate, arguments.get(TRACE) or 0, request.lora_request.lora_name
            )
            HELD.set(len(self._gates))
            if request._block_hasher is not None:
                # The prompt was hashed when the request was made; hash it again, as the base's.
                request._block_hasher = _hash_as_base(request._block_hasher)
                request.block_hashes.clear()
                request.update_block_hashes()
        super().add_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        if self._gates.pop(request.request_id, None) is not None:
            HELD.set(len(self._gates))
        return super()._free_request(request, delay_free_blocks)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        if not self._gates and not self._turned_away:  # always-on ones may still be taking turns
            return super().schedule(throttle_prefills)
        hidden = self._hide_idle_adapters() if self._shares_slots else {}
        self._take_turns()
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self.lora_config.max_loras = self._slots
            for request, lora in hidden.items():
                request.lora_request = lora
        for new in output.scheduled_new_reqs:
            new.lora_request = self.requests[new.req_id].lora_request
        attach(output, self._plan(output))
        return output

    def _hide_idle_adapters(self) -> dict[Request, Any]:
        """Have vLLM count, against max_loras, the adapters that the coming step runs.

        Returns:
            Requests that seem to have no adapter until theirs is put back.
        """
        hidden: dict[Request, Any] = {}
        for name, gate in self._gates.items():
            request = self.requests[name]
            if not gate.points or gate.points[-1] < request.num_computed_tokens:
                hidden[request], request.lora_request = request.lora_request, None
        return hidden

    def _take_turns(self) -> None:
        """Where a step would run more adapters than there are slots, some wait for the next.

        First come those that have waited longest. Without shared slots it happens too: a request
        at what seems to be its last token is not counted by vLLM, which gives its slot away; and
        then a replay brings it back.
        """
        wanted: dict[int, list[Request]] = {}  # LoRA id -> those that run with it in this step
        for request in self.running:
            if request.lora_request is not None:
                wanted.setdefault(request.lora_request.lora_int_id, []).append(request)
        free = self._slots - len(pins.PINNED)
        self.lora_config.max_loras = self._slots - len(pins.PINNED - wanted.keys())
        crowded = self._shares_slots and len(wanted) >= free
        if crowded and self.current_step % 2 and self._is_kept_waiting(wanted):
            free -= 1
        now = self.current_step + 1
        others = wanted.keys() - pins.PINNED
        turned_away = {one: self._turned_away.get(one, now) for one in others}
        for lora in sorted(others, key=turned_away.__getitem__)[:free]:
            del turned_away[lora]
        for lora in turned_away:
            for request in wanted[lora]:
                request.next_decode_eligible_step = now + 1
        self._turned_away = turned_away

    def _is_kept_waiting(self, wanted: Container[int]) -> bool:
        """Whether a request that has not begun needs an adapter beside those `wanted`."""
        loras = (request.lora_request for request in self.waiting)
        return any(lora is not None and lora.lora_int_id not in wanted for lora in loras)

    def _plan(self, output: SchedulerOutput) -> Plan:
        plan: Plan = {}
        for request_id, tokens in output.num_scheduled_tokens.items():
            gate = self._gates.get(request_id)
            if gate is None:
                continue
            request = self.requests[request_id]
            end = request.num_computed_tokens  # vLLM has already advanced it past this step
            points = gate.points
            samples = not request.is_prefill_chunk
            known = bool(points) and points[-1] == end - 1
            plan[request_id] = Step(
                gate.tau,
                gate.temperature,
                samples and not known,
                samples and known,
                tuple(points[bisect_left(points, end - tokens) :]) if points else (),
                gate.trace,
            )
        return plan

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        plan = plan_of(scheduler_output)
        if not plan:
            return super().update_from_output(scheduler_output, model_runner_output)
        opened, answered = self._read(plan, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in opened:
            if not request.is_finished():
                request.num_computed_tokens -= 1
                if request.num_output_placeholders > 0:  # asynchronous scheduling
                    request.num_output_placeholders -= 1
        self._tell(outputs, answered)
        return outputs

    def _read(
        self, plan: Plan, result: ModelRunnerOutput
    ) -> tuple[list[Request], dict[str, Answer]]:
        """Note the decision points found in a step.

        Returns:
            The requests to roll back by one position, and what is known of those with a token.
        """
        opened: list[Request] = []
        answered: dict[str, Answer] = {}
        evidence: Evidence = getattr(result, "gate_evidence", None) or {}
        for request_id, step in plan.items():
            gate, request = self._gates.get(request_id), self.requests.get(request_id)
            if gate is None or request is None or request.is_finished():
                continue  # aborted meanwhile
            stale = request.num_stale_output_tokens > 0
            if stale and request.drop_stale_output:
                continue  # vLLM throws this result away and computes the position again
            # What a step samples at is always the last known token, also where asynchronous
            # scheduling had guessed further.
            position = request.num_tokens - 1
            known = bool(gate.points) and gate.points[-1] == position
            row = result.req_id_to_index[request_id]
            if result.sampled_token_ids[row]:
                seen = gate.seen if known else evidence.get(request_id)
                answered[request_id] = Answer(gate, request.num_output_tokens, known, seen)
            elif step.gates:
                if not known:
                    gate.points.append(position)
                    gate.seen = evidence.get(request_id)
                    del request.block_hashes[position // self.hash_block_size :]
                    request._block_hasher = None
                if not stale:  # a preemption has already taken everything back
                    opened.append(request)
                    count_replay(gate.adapter)
        return opened, answered

    def _tell(
        self,
        outputs: dict[int, EngineCoreOutputs],
        answered: dict[str, Answer],
    ) -> None:
        """Mark the gated tokens that go out."""
        for batch in outputs.values():
            for output in batch.outputs:
                found = answered.get(output.request_id)
                if found is None or not output.new_token_ids:
                    continue
                gate, position, gated, seen = found
                if not gated and position and gate.trace < 2:
                    continue
                mark = report.mark(gate.trace, position, output.new_token_ids[0], gated, seen)
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), REPORT: mark}


class GateScheduler(GateMixin):
    """The synchronous scheduler with a gate."""


class AsyncGateScheduler(GateMixin, AsyncScheduler):
    """The asynchronous scheduler with a gate."""


def make_scheduler(vllm_config: Any, kv_cache_config: Any, **kwargs: Any) -> GateMixin:
    """What vLLM calls in place of its scheduler class (--scheduler-cls)."""
    check(vllm_config, kv_cache_config)
    pins.install()
    report.install()  # for the outputs of an engine inside its user's process
    asynchronous = vllm_config.scheduler_config.async_scheduling
    return (AsyncGateScheduler if asynchronous else GateScheduler)(
        vllm_config=vllm_config, kv_cache_config=kv_cache_config, **kwargs
    )
