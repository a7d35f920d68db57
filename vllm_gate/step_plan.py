"""What the scheduler tells the workers about gated requests, step by step.

A gated request carries its gate in `SamplingParams.extra_args` (params.py). The workers keep no
arguments of their own: each step's SchedulerOutput brings a `Plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput

from vllm_gate.params import NEVER, GateParams

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


class Guidance(NamedTuple):
    """A replay's further tokens (guidance.py)."""

    scale: float
    prompt: tuple[int, ...]  # token ids, at the positions behind the replay's


class Step(NamedTuple):
    """One gated request in one step."""

    tau: float  # nats
    temperature: float  # divides the logits of a replay
    samples: bool  # not so where the step ends within the prompt, or a guidance prompt
    replays: bool  # the step's first token is the replay of a decision point
    trace: int  # 0; 1: tell of decision points; 2: of every token
    guidance: Guidance | None = None  # of a replay
    two_rows: bool = False  # base and adapter compute the step's token side by side (two_rows.py)


Plan = dict[str, Step]  # by request id; requests that are not gated are absent
EMPTY: Plan = {}


def attach(output: SchedulerOutput, plan: Plan) -> None:
    """Send `plan` along. The output is pickled to the workers with all its attributes."""
    output.gate_plan = plan  # type: ignore[attr-defined]


def plan_of(output: SchedulerOutput) -> Plan:
    """The plan of a step; empty for the dummy steps vLLM makes itself."""
    return getattr(output, "gate_plan", EMPTY)


def gate_of(params: SamplingParams | None, lora_request: LoRARequest | None) -> GateParams | None:
    """The gate of a request that is gated, None of one that is not.

    A request of the base has no adapter to run; it counts as gated where its gate never opens, or
    is guided.
    """
    gate = GateParams.of(params.extra_args) if params is not None else None
    if gate is None or (lora_request is None and gate.tau < NEVER and not gate.guided):
        return None
    return gate
