"""The scheduler's half of replay: a position whose gate opened runs once more, adapter on.

Position 41 of a request runs on the base, which writes its keys and values and finds an entropy
above tau. The step returns no token, and `num_computed_tokens` goes back by one, as for a rejected
draft token. The next step runs position 41 again with the adapter on. The replay attends to the
cache that the base wrote, position 41 included, and writes nothing. Its token is the answer.

The cache of a gated request is therefore the base's throughout. To vLLM such a request is a base
request: `Request.lora_request` is None, so blocks are hashed, shared and given to KV connectors as
the base's. The adapter is named only while `schedule` counts LoRA slots.

A decision point is known from the step that found it until its replay. A preemption discards it,
since the cache goes too: the base runs that position again, and so does the gate.

With speculative decoding a step verifies drafts at the positions behind the last known token:

    41 known; 42, 43, 44 drafted; H > tau at 43   the step gives 42 and 43, and nothing for 44
    43 replayed; 44, 45, 46 drafted               the adapter gives 44, and the base what follows

The step ends at the first decision point that it reaches, as if the drafts behind it had been
rejected. vLLM then takes the positions back itself, unless that point is the first position and
the step gives no token at all. A replay may carry drafts too, which the base verifies.

A guided replay carries its guidance prompt where drafts would be (guidance.py). In a step that
decodes only, base and adapter may compute a position side by side: two_rows.py.

Written for vLLM 0.32 (v1/core/sched/scheduler.py, v1/core/sched/async_scheduler.py).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_gate import patches, pins, token_report
from vllm_gate.base_top_tokens import BaseView, StepViews, views_of
from vllm_gate.compat import check, check_parts, shares_slots
from vllm_gate.counters import HELD, count_replay
from vllm_gate.params import WATCHED, GateParams
from vllm_gate.step_plan import Guidance, Plan, Step, attach, gate_of, plan_of
from vllm_gate.token_report import REPORT, TracedToken
from vllm_gate.turns import Turns
from vllm_gate.two_rows import TwoRows, past_rate

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import BlockStored
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.kv_cache_interface import KVCacheConfig

TransferParams = tuple[dict[str, Any] | None, dict[str, Any] | None]  # of KV and encoder caches


@dataclass
class Gate:
    """A gated request's gate, and its decision point while that awaits the replay."""

    params: GateParams
    lora: LoRARequest | None  # None: the base's own, whose gate never opens or which is guided
    point: int | None = None  # a position
    view: BaseView | None = None  # what the base's distribution was there
    decodes: bool = False  # it has given a token since it was last scheduled anew
    tokens: int = 0
    corrected: int = 0  # of them
    # Of the prompt, which arrive with a step that gave no token: fields of ModelRunnerOutput.
    held: dict[str, Any] = field(default_factory=dict)


class OutgoingTokens(NamedTuple):
    """The tokens of a step that are about to go out; the first of them may be gated."""

    gate: Gate
    position: int  # of the first among the generated tokens, from 0
    gated: bool  # it comes from a replay
    views: Sequence[BaseView | None]  # of the first ones, as far as known


class Rollback(NamedTuple):
    """Positions that a step computed and that gave no token."""

    request: Request
    computed: int  # its computed tokens while the step was under way
    positions: int


PROMPT_LOGPROBS = ("prompt_logprobs_dict", "prompt_token_id_logprobs_dict")


def _become_base(request: Request) -> None:
    """Let vLLM take `request` for one of the base, whose prompt it hashes accordingly."""
    request.lora_request = None
    request.block_hashes.clear()
    request.update_block_hashes()


def _tell_as_the_bases(pool: BlockPool, gates: Container[str]) -> None:
    """Have vLLM's events (--kv-events-config) tell of a gated request's blocks as the base's.

    They are the base's, and hashed so. But an event that arises while `schedule` counts LoRA slots
    would name the adapter, and routers that follow events would look for the base's in vain.
    """
    stock = pool._build_block_stored_event

    def build(request: Request, **facts: Any) -> BlockStored:
        if request.lora_request is None or request.request_id not in gates:
            return stock(request, **facts)
        # The adapter stands first among the keys of each block.
        facts["extra_keys_list"] = [keys[1:] or None for keys in facts["extra_keys_list"]]
        event = stock(request, **facts)
        event.lora_id = event.lora_name = None
        return event

    owner = "vllm.v1.core.block_pool:BlockPool"
    patches.wrap_instance(owner, "_build_block_stored_event", pool, build)


class GateMixin(Scheduler):
    """A scheduler whose requests may be gated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gates: dict[str, Gate] = {}
        # A copy, whose max_loras goes down for steps that do not run the pinned ones.
        self.lora_config = copy(self.vllm_config.lora_config)
        slots = self.lora_config.max_loras if self.lora_config else 0
        self._turns = Turns(slots, shares_slots(self.vllm_config))
        self._two_rows = TwoRows.of(self.vllm_config)
        if self.enable_kv_cache_events:
            _tell_as_the_bases(self.kv_cache_manager.block_pool, self._gates)

    def add_request(self, request: Request) -> None:
        params = gate_of(request.sampling_params, request.lora_request)
        if params is not None and request.request_id not in self.requests:
            self._gates[request.request_id] = Gate(params, request.lora_request)
            HELD.set(len(self._gates))
            _become_base(request)
        super().add_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> TransferParams:
        if self._gates.pop(request.request_id, None) is not None:
            HELD.set(len(self._gates))
        return super()._free_request(request, delay_free_blocks)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Always-on requests may still be taking turns, or run beside pinned adapters.
        if not (self._gates or self._turns.turned_away or pins.PINNED):
            return super().schedule(throttle_prefills)
        # vLLM counts the adapters of requests against max_loras; show it those the step may run.
        for name, gate in self._gates.items():
            request = self.requests[name]
            if not self._turns.shared or gate.point == request.num_computed_tokens:
                request.lora_request = gate.lora
            if gate.point == request.num_computed_tokens and self._can_guide(gate):
                request.spec_token_ids = list(gate.params.guidance_prompt)  # drafts, to vLLM
        if self.lora_config:
            self.lora_config.max_loras = self._turns.take(
                self.running, self.waiting, self.current_step
            )
        try:
            output = super().schedule(throttle_prefills)
        finally:
            if self.lora_config:
                self.lora_config.max_loras = self._turns.slots
            for name in self._gates:
                self.requests[name].lora_request = None
        for new in output.scheduled_new_reqs:
            if new.req_id in self._gates:
                new.lora_request = self._gates[new.req_id].lora
        plan = self._plan(output)
        for name in self._second_rows(output, plan):
            plan[name] = plan[name]._replace(two_rows=True)
        attach(output, plan)
        return output

    def _second_rows(self, output: SchedulerOutput, plan: Plan) -> set[str]:
        """Requests whose token base and adapter compute side by side, in a step that decodes."""
        rows = len(output.num_scheduled_tokens)
        if not self._two_rows.rows or output.total_num_scheduled_tokens != rows:
            return set()
        past = [
            (name, past_rate(self._gates[name].corrected, self._gates[name].tokens))
            for name, step in plan.items()
            if self._gates[name].decodes and not step.replays and self._gates[name].lora is not None
        ]
        return self._two_rows.choose(past, rows)

    def _can_guide(self, gate: Gate) -> bool:
        """Whether the guidance prompt fits behind the request's decision point."""
        tokens = 1 + len(gate.params.guidance_prompt)
        if not gate.params.guided or gate.point is None or not self._turns.shared:
            return False  # `guidance.check_engine` refuses what needs another engine
        config = self.scheduler_config
        most = min(
            self.max_num_scheduled_tokens,
            config.long_prefill_token_threshold or self.max_num_scheduled_tokens,
            self.max_model_len - gate.point - 1,
        )
        return tokens <= most

    def _guidance(self, gate: Gate, request_id: str, output: SchedulerOutput) -> Guidance | None:
        """The guidance of a replay; its prompt is taken out of the step's drafts."""
        if not self._can_guide(gate):
            return None
        scheduled = output.scheduled_spec_decode_tokens.pop(request_id, [])
        return Guidance(gate.params.guidance_scale, tuple(scheduled))

    def _plan(self, output: SchedulerOutput) -> Plan:
        plan: Plan = {}
        begun = {new.req_id for new in output.scheduled_new_reqs}
        begun |= output.scheduled_cached_reqs.resumed_req_ids
        for request_id, tokens in output.num_scheduled_tokens.items():
            gate = self._gates.get(request_id)
            if gate is None:
                continue
            request = self.requests[request_id]
            # vLLM has already advanced num_computed_tokens past this step.
            start = request.num_computed_tokens - tokens
            if gate.point is not None and (request_id in begun or start < gate.point):
                gate.point = None  # what the base wrote there is gone
            gate.decodes = gate.decodes and request_id not in begun
            params, replays = gate.params, gate.point == start
            guidance = self._guidance(gate, request_id, output) if replays else None
            # A step that has no room for the whole guidance prompt is tried again.
            whole = guidance is None or guidance.prompt == params.guidance_prompt
            plan[request_id] = Step(
                params.tau,
                params.correction_temperature,
                samples=not request.is_prefill_chunk and whole,
                replays=replays,
                trace=2 if params.watched else params.trace,
                guidance=guidance,
            )
        return plan

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        plan = plan_of(scheduler_output)
        if not plan:
            return super().update_from_output(scheduler_output, model_runner_output)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        rollbacks, answered = self._read(plan, model_runner_output, drafts)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request, computed, positions in rollbacks:
            # Where a KV connector failed to load blocks, vLLM has taken more back itself.
            if not request.is_finished() and request.num_computed_tokens == computed:
                request.num_computed_tokens -= positions
                if request.num_output_placeholders > 0:  # asynchronous scheduling
                    request.num_output_placeholders -= positions
        self._tell(outputs, answered)
        return outputs

    def _read(
        self, plan: Plan, result: ModelRunnerOutput, drafts: dict[str, list[int]]
    ) -> tuple[list[Rollback], dict[str, OutgoingTokens]]:
        """Note the decision points found in a step.

        Returns:
            What is to be rolled back, and what is known of the requests with tokens.
        """
        rollbacks: list[Rollback] = []
        answered: dict[str, OutgoingTokens] = {}
        found = views_of(result)
        for request_id, step in plan.items():
            gate, request = self._gates.get(request_id), self.requests.get(request_id)
            if gate is None or request is None or request.is_finished():
                continue  # aborted meanwhile
            stale = request.num_stale_output_tokens > 0
            if stale and request.drop_stale_output:
                continue  # vLLM throws this result away and computes the position again
            opened, corrected, shut = found.get(request_id, StepViews())
            count = len(result.sampled_token_ids[result.req_id_to_index[request_id]])
            _pass_prompt_logprobs(gate, result, request_id, now=count > 0)
            if step.guidance is not None and not stale:
                # The prompt's positions, and without a token the replay itself.
                positions = len(step.guidance.prompt) + (not count)
                rollbacks.append(Rollback(request, request.num_computed_tokens, positions))
            if count:
                replayed = gate.point is not None
                gated = replayed or corrected is not None
                views = [gate.view if replayed else corrected, *shut] if gated else shut
                answered[request_id] = OutgoingTokens(gate, request.num_output_tokens, gated, views)
                gate.point, gate.decodes = None, not stale
                gate.tokens, gate.corrected = gate.tokens + count, gate.corrected + gated
            if opened is not None:
                # The first token that a step samples follows the last known one, also where
                # asynchronous scheduling had guessed further.
                gate.point, gate.view = request.num_tokens - 1 + count, opened
                # Behind a token vLLM rolls back itself, after a preemption it already has.
                if not count and not stale:
                    positions = 1 + len(drafts.get(request_id, ()))
                    rollbacks.append(Rollback(request, request.num_computed_tokens, positions))
        return rollbacks, answered

    def _tell(
        self,
        outputs: dict[int, EngineCoreOutputs],
        answered: dict[str, OutgoingTokens],
    ) -> None:
        """Mark the gated tokens that go out."""
        for batch in outputs.values():
            for output in batch.outputs:
                found = answered.get(output.request_id)
                if found is None or not output.new_token_ids:
                    continue
                if found.gated and found.gate.lora is not None:
                    count_replay(found.gate.lora.lora_name)
                told = _told(found, output.new_token_ids)
                if told:
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), **told}


def _told(found: OutgoingTokens, tokens: list[int]) -> dict[str, Any]:
    """What the front end is told of a step's tokens, by keys of `kv_transfer_params`."""
    gate, position, gated, views = found
    params = gate.params
    told: dict[str, Any] = {}
    if params.watched:
        seen = [round(view.entropy, 6) for view in views[: len(tokens)] if view is not None]
        told |= {WATCHED: seen} if seen else {}
        if gate.lora is None:
            return told  # a request of the base that is only looked at
    if gated or not position or params.trace > 1:
        told[REPORT] = _marks(found, tokens)
    return told


def _marks(found: OutgoingTokens, tokens: list[int]) -> list[TracedToken]:
    """The marks of a gated token, and with `trace=2` of every token of a step."""
    trace = found.gate.params.trace
    marked = tokens if trace > 1 else tokens[: int(found.gated)]
    return [
        token_report.mark(trace, found.position + at, token, found.gated and at == 0, view)
        for at, (token, view) in enumerate(zip_longest(marked, found.views[: len(marked)]))
    ]


def _pass_prompt_logprobs(
    gate: Gate, result: ModelRunnerOutput, request_id: str, *, now: bool
) -> None:
    """Hold the prompt's logprobs back until a token goes out: vLLM takes them with none before."""
    for name in PROMPT_LOGPROBS:
        by_request = getattr(result, name)
        if now and name in gate.held:
            by_request[request_id] = gate.held.pop(name)
        elif not now and request_id in by_request:
            gate.held[name] = by_request.pop(request_id)


class GateScheduler(GateMixin):
    """The synchronous scheduler with a gate."""


class AsyncGateScheduler(GateMixin, AsyncScheduler):
    """The asynchronous scheduler with a gate."""


def make_scheduler(
    vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, **kwargs: Any
) -> GateMixin:
    """What vLLM calls in place of its scheduler class (--scheduler-cls)."""
    check_parts(vllm_config)
    check(vllm_config, kv_cache_config)
    patches.install("scheduler")
    patches.check("outputs")  # the front end's, which nobody could stop there any more
    asynchronous = vllm_config.scheduler_config.async_scheduling
    return (AsyncGateScheduler if asynchronous else GateScheduler)(
        vllm_config=vllm_config, kv_cache_config=kv_cache_config, **kwargs
    )
