"""The gate's arguments of a request: what a client may send, and what the engine is told.

The engine is told in `SamplingParams.extra_args`, which `GateParams` writes and reads. A client of
our server sends, in `vllm_xargs`, with a model NAME:gated:

    {"gate_tau": 0.8}                the threshold, in nats, instead of the manifest's
    {"gate_rate": 0.05}              the threshold that was calibrated for this share of tokens
    {"correction_temperature": 0.3}  divides the adapter's logits where the gate is open, instead
                                     of the manifest's; before the request's own temperature
    {"gate_trace": 1}                say which tokens were gated, and why; 2: the entropy at every
                                     token
    {"guidance_scale": 1.5}          at decision points, go away from what would be said after the
                                     guidance prompt; 1: no guidance
    {"guidance_prompt": [5, 6]}      its tokens, or for our server its text

A client of plain `vllm serve` sends the same, without `gate_rate`, with the adapter's own name.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.gate import WAYS_OUT, threshold_for
from adapters.manifest import COLDEST, HOTTEST, Gate

logger = logging.getLogger(__name__)

TAU = "gate_tau"
RATE = "gate_rate"
TEMPERATURE = "correction_temperature"
TRACE = "gate_trace"
SCALE = "guidance_scale"
PROMPT = "guidance_prompt"
OLD_TEMPERATURE = "gate_temperature"  # TEMPERATURE's old name, deprecated

# A threshold that no vocabulary's entropy reaches, nats.
NEVER = 1e9

CLIENTS = (TAU, RATE, TEMPERATURE, TRACE, SCALE, PROMPT)  # a client of our server may send
ENGINES = (TAU, TEMPERATURE, TRACE, SCALE, PROMPT)  # the engine takes
PREFIXES = ("gate_", "guidance_")
NEGATIVE = "OUTPUT ERROR"  # the guidance prompt of a client of our server that names none
WIDEST = 20.0  # guidance scale
LONGEST = 16  # tokens of a guidance prompt: each guided token costs a step of as many
# Of our server to its engine: report the base's entropy of every token to the server's process.
WATCHED = f"{PREFIXES[0]}watched"


@dataclass(frozen=True)
class GateParams:
    """What a gated request asks of the engine.

        SamplingParams(extra_args=GateParams(tau=0.8).extra_args())

    The request names its adapter as any LoRA request does. Without an adapter a gate either guides
    the base (`guidance_scale`), or never opens: `GateParams(NEVER, trace=2)` reports its entropies.

    Raises:
        ValueError: a value is out of range.
    """

    tau: float  # nats; the gate opens where the base's entropy is larger
    correction_temperature: float = 1.0  # divides the logits of decision points
    trace: int = 0  # 1: report each decision point; 2: report the base's entropy at every token
    watched: bool = False  # report every entropy to the process (token_report.install) alone
    guidance_scale: float = 1.0  # 1: no guidance (guidance.py)
    guidance_prompt: tuple[int, ...] = ()  # its tokens

    def __post_init__(self) -> None:
        _number(TAU, self.tau)
        _number(TEMPERATURE, self.correction_temperature, HOTTEST, COLDEST)
        if self.trace not in (0, 1, 2):
            raise ValueError(f"{TRACE}: must be 0, 1 or 2, not {self.trace!r}")
        _number(SCALE, self.guidance_scale, WIDEST)
        _token_ids(self.guidance_prompt)
        if self.guided != bool(self.guidance_prompt):
            raise ValueError(f"{SCALE} and {PROMPT}: a scale other than 1 goes with a prompt")

    @property
    def guided(self) -> bool:
        """Whether decision points are guided."""
        return self.guidance_scale != 1

    def extra_args(self) -> dict[str, Any]:
        """For `SamplingParams.extra_args`."""
        told = {TAU: self.tau, TEMPERATURE: self.correction_temperature, TRACE: self.trace}
        guidance = {SCALE: self.guidance_scale, PROMPT: list(self.guidance_prompt)}
        return told | (guidance if self.guided else {}) | ({WATCHED: 1} if self.watched else {})

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> GateParams | None:
        """What `extra_args` asks; None where it asks for no gate.

        Raises:
            ValueError: an argument is unknown, missing or out of range.
        """
        arguments = renamed(extra_args)
        found = given(arguments)
        if not found:
            return None
        unknown = [name for name in found if name not in (*ENGINES, WATCHED)]
        if unknown:
            raise ValueError(f"{unknown[0]}: the engine takes {', '.join(ENGINES)} only")
        if TAU not in arguments:
            raise ValueError(f"{found[0]}: goes with a gated model")
        return cls(
            _number(TAU, arguments[TAU]),
            _number(TEMPERATURE, arguments.get(TEMPERATURE, 1.0), HOTTEST, COLDEST),
            arguments.get(TRACE) or 0,
            bool(arguments.get(WATCHED)),
            _number(SCALE, arguments.get(SCALE, 1.0), WIDEST),
            _token_ids(arguments.get(PROMPT, ())),
        )


def given(arguments: Mapping[str, Any] | None) -> list[str]:
    """The gate's arguments among a request's."""
    return sorted(
        name for name in arguments or {} if name.startswith(PREFIXES) or name == TEMPERATURE
    )


def renamed(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same arguments, where a deprecated name gives way to today's.

    Raises:
        ValueError: both names are there.
    """
    told = dict(arguments or {})
    if OLD_TEMPERATURE not in told:
        return told
    if TEMPERATURE in told:
        raise ValueError(f"{OLD_TEMPERATURE}: deprecated; {TEMPERATURE} alone says the same")
    logger.debug("%s is deprecated; send %s", OLD_TEMPERATURE, TEMPERATURE)
    return told | {TEMPERATURE: told.pop(OLD_TEMPERATURE)}


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


def _token_ids(value: Any) -> tuple[int, ...]:
    good = isinstance(value, list | tuple) and len(value) <= LONGEST
    if not good or any(type(one) is not int or one < 0 for one in value):
        raise ValueError(
            f"{PROMPT}: must be a list of at most {LONGEST} token ids, not {reprlib.repr(value)}"
        )
    return tuple(value)


def _resolve_guidance(told: dict[str, Any]) -> None:
    """Complete a client's guidance, whose prompt may be a text; leave none that changes nothing."""
    if PROMPT in told and SCALE not in told:
        raise ValueError(f"{PROMPT}: goes with {SCALE}")
    if SCALE not in told:
        return
    prompt = told.setdefault(PROMPT, NEGATIVE)
    if not prompt:
        raise ValueError(f"{PROMPT}: is empty; leave it out for '{NEGATIVE}'")
    if not isinstance(prompt, str):
        _token_ids(prompt)
    if _number(SCALE, told[SCALE], WIDEST) == 1:
        del told[SCALE], told[PROMPT]


def resolve(
    arguments: Mapping[str, Any] | None, gate: Gate | None, tau: float | None = None
) -> dict[str, Any]:
    """What the engine is told, of what a client sent to an adapter with this `gate`.

    Args:
        gate: None: the adapter has no calibration, so the request must name the threshold.
        tau: the threshold for requests that name none, nats; None: the gate's.

    Raises:
        ValueError: an argument is unknown, does not fit, or contradicts another.
    """
    told = renamed(arguments)
    unknown = [name for name in given(told) if name not in CLIENTS]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such argument; there are {', '.join(CLIENTS)}")
    rate = told.pop(RATE, None)
    if rate is not None:
        if TAU in told:
            raise ValueError(f"{TAU} and {RATE}: give one of them")
        rate = _number(RATE, rate, 1)
        told[TAU] = NEVER if rate == 0 else threshold_for(gate.table if gate else (), rate)
    if tau is None and gate is not None:
        tau = gate.tau
    if TAU not in told and tau is None:
        raise ValueError(f"{TAU}: this adapter has no threshold of its own; {WAYS_OUT}")
    told[TAU] = _number(TAU, told.get(TAU, tau))
    temperature = told.get(TEMPERATURE, gate.temperature if gate else 1.0)
    told[TEMPERATURE] = _number(TEMPERATURE, temperature, HOTTEST, COLDEST)
    if told.setdefault(TRACE, 0) not in (0, 1, 2):
        raise ValueError(f"{TRACE}: must be 0, 1 or 2, not {told[TRACE]!r}")
    _resolve_guidance(told)
    return told
