"""The gate's arguments of a request: what a client may send, and what the engine is told.

A client sends, in `vllm_xargs`, with a model NAME:gated:

    {"gate_tau": 0.8}          the threshold, in nats, instead of the manifest's
    {"gate_rate": 0.05}        the threshold that was calibrated for this share of tokens
    {"gate_temperature": 0.3}  divides the adapter's logits where the gate is open, instead of the
                               manifest's; before the request's own temperature
    {"gate_trace": 1}          say which tokens were gated, and why; 2: the entropy at every token

The engine is told threshold and temperature, in `SamplingParams.extra_args`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from adapters.gate import threshold_for
from adapters.manifest import COLDEST, HOTTEST, Gate
from vllm_gate.engine import NEVER, TAU, TEMPERATURE, TRACE
from vllm_gate.step_plan import TALLY

if TYPE_CHECKING:
    from vllm import SamplingParams

RATE = "gate_rate"
CLIENTS = (TAU, RATE, TEMPERATURE, TRACE)  # a client may send
ENGINES = (TAU, TEMPERATURE, TRACE, TALLY)  # the engine takes
PREFIX = "gate_"


def given(arguments: Mapping[str, Any] | None) -> list[str]:
    """The gate's arguments among a request's."""
    return sorted(name for name in arguments or {} if name.startswith(PREFIX))


def _number(name: str, value: Any, high: float = math.inf, low: float = 0) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if good else math.nan
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        between = f"a number between {low:g} and {high:g}"
        span = "a number >= 0, in nats" if high == math.inf else between
        raise ValueError(f"{name}: must be {span}, not {reprlib.repr(value)}")
    return number


def resolve(arguments: Mapping[str, Any] | None, gate: Gate) -> dict[str, Any]:
    """What the engine is told, of what a client sent to an adapter with this `gate`.

    Raises:
        ValueError: an argument is unknown, does not fit, or contradicts another.
    """
    told = dict(arguments or {})
    unknown = [name for name in given(told) if name not in CLIENTS]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such argument; there are {', '.join(CLIENTS)}")
    rate = told.pop(RATE, None)
    if rate is not None:
        if TAU in told:
            raise ValueError(f"{TAU} and {RATE}: give one of them")
        rate = _number(RATE, rate, 1)
        told[TAU] = NEVER if rate == 0 else threshold_for(gate.table, rate)
    told[TAU] = _number(TAU, told.get(TAU, gate.tau))
    temperature = told.get(TEMPERATURE, gate.temperature)
    told[TEMPERATURE] = _number(TEMPERATURE, temperature, HOTTEST, COLDEST)
    if told.setdefault(TRACE, 0) not in (0, 1, 2):
        raise ValueError(f"{TRACE}: must be 0, 1 or 2, not {told[TRACE]!r}")
    return told


class GateArguments(ProcessorV1, ProcessorV2):  # type: ignore[misc]
    """The arguments' place in vLLM: a logits processor, of either model runner, that edits nothing.

    It is asked at admission, where a ValueError becomes an answer with status 400.
    """

    def __init__(self, *_: Any) -> None:
        """Both interfaces' arguments; none is needed."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError where gating cannot work."""
        arguments = sampling_params.extra_args or {}
        if not given(arguments):
            return
        unknown = [name for name in given(arguments) if name not in ENGINES]
        if unknown:
            raise ValueError(f"{unknown[0]}: the engine takes {', '.join(ENGINES[:-1])} only")
        if TAU not in arguments:
            raise ValueError(f"{given(arguments)[0]}: goes with a gated model")
        _number(TAU, arguments[TAU])
        _number(TEMPERATURE, arguments.get(TEMPERATURE, 1.0), HOTTEST, COLDEST)
        if sampling_params.prompt_logprobs is not None or getattr(
            sampling_params, "prompt_logprob_token_ids", None
        ):
            raise ValueError(
                "prompt_logprobs (echo with logprobs): not with a gated model, whose last prompt "
                "position may run twice; ask the base or the plain adapter"
            )

    def is_argmax_invariant(self) -> bool:
        """It changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """V1: nothing is kept; each step's plan brings the thresholds."""

    def add_request(self, *_: Any) -> bool:
        """V2: whether it edits this request's logits."""
        return False

    def apply(self, logits: Any, *_: Any) -> Any:
        """Both interfaces: the same logits."""
        return logits
