"""What the scheduler tells the workers about gated requests, step by step.

A gated request carries its gate in `SamplingParams.extra_args` (see params.py). The
workers keep no arguments of their own: each step's SchedulerOutput brings a `Plan`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput

from vllm_gate.engine import NEVER, TAU, TEMPERATURE

TALLY = "gate_tally"  # set by the server: which answer the sequence belongs to


class Step(NamedTuple):
    """One gated request in one step."""

    tau: float  # nats
    temperature: float  # divides the logits of a replay
    gates: bool  # the step samples, and no decision point is known at that position
    replays: bool  # the step's only token is the replay of a decision point
    trace: int  # 0; 1: tell of decision points; 2: of every token


Plan = dict[str, Step]  # by request id; requests that are not gated are absent
EMPTY: Plan = {}


def attach(output: SchedulerOutput, plan: Plan) -> None:
    """Send `plan` along. The output is pickled to the workers with all its attributes."""
    output.gate_plan = plan


def plan_of(output: SchedulerOutput) -> Plan:
    """The plan of a step; empty for the dummy steps vLLM makes itself."""
    return getattr(output, "gate_plan", EMPTY)


def gate_of(params: Any, lora_request: Any) -> tuple[float, float] | None:
    """(tau, temperature) of a request that is gated, None of one that is not.

    A request of the base has no adapter to run; it counts as gated where its gate never opens.
    """
    arguments = params.extra_args if params is not None else None
    if not arguments or TAU not in arguments:
        return None
    if lora_request is None and float(arguments[TAU]) < NEVER:
        return None
    return float(arguments[TAU]), float(arguments.get(TEMPERATURE, 1.0))
