"""What can be asked of a model, and what comes back: the types that both engines share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from adapters.gate import threshold_for
from adapters.manifest import Gate, Mode
from training.hf_model import Dtype

EngineName = Literal["auto", "vllm", "transformers"]


class Completion(NamedTuple):
    """One answer of a model, in tokens and as text.

    When `finish_reason` is stop, `token_ids` end with the end-of-sequence token, or with the token
    that completed a stop string. `text` has neither.
    """

    token_ids: list[int]
    text: str
    finish_reason: str  # "stop" or "length"
    gated: int = 0  # tokens sampled through the open gate
    # The base's entropy where each token was drawn, nats; None: not asked for, or not known.
    entropies: list[float] | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample. Temperature 0 is greedy."""

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 2048
    seed: int = 0
    entropies: bool = False  # vLLM: report the base's entropy of every token
    stop: tuple[str, ...] = ()  # strings that end an answer


class Guidance(NamedTuple):
    """A negative prompt that decision points are kept away from; vLLM's CPU build alone has it."""

    scale: float  # 1: no guidance
    prompt: tuple[int, ...]  # token ids


class Applied(NamedTuple):
    """An adapter, and where it runs: at every step, behind the gate, or at random steps."""

    adapter: Path  # a PEFT folder
    tau: float | None = None  # nats: where the base's entropy exceeds it; None: at every step
    random_rate: float | None = None  # a control: at this share of steps, drawn at random
    temperature: float = 1.0  # correction temperature: divides the adapter's logits
    guidance: Guidance | None = None

    @classmethod
    def behind(
        cls, adapter: Path, gate: Gate | None, tau: float | None = None, rate: float | None = None
    ) -> Applied:
        """The adapter as it is served: where `gate` opens, or at another threshold if one is given.

        Args:
            gate: None: `tau` is needed.
            tau: nats.
            rate: in its place a gate rate, by the calibration of `gate`.

        Raises:
            ValueError: a rate that the calibration does not reach.
        """
        if tau is None:
            assert gate is not None
            tau = gate.tau if rate is None else threshold_for(gate.table, rate)
        return cls(adapter, tau, temperature=gate.temperature if gate else 1.0)

    @classmethod
    def at_random(cls, adapter: Path, gate: Gate, rate: float | None = None) -> Applied:
        """A control: at the temperature of `gate` and its gate rate, or `rate`, at random steps."""
        return cls(adapter, random_rate=rate or gate.rate, temperature=gate.temperature)

    @property
    def settings(self) -> tuple[object, ...]:
        """What answers depend on beside the adapter's weights."""
        return (*self[1:-1], *([self.guidance] if self.guidance else []))

    @property
    def mode(self) -> Mode:
        """The mode as a manifest names it: always or gated."""
        return "always" if self.tau is None and self.random_rate is None else "gated"


class Sampled(NamedTuple):
    """Tokens sampled so far by a call of `stream`, those of unfinished answers included."""

    tokens: int


# What a stream yields: an index of a prompt with its `n` completions as prompts finish, in any
# order, and every second or so how far it is.
Event = tuple[int, list[Completion]] | Sampled


class SamplingEngine(Protocol):
    """What answers prompts: vLLM or transformers, with a model loaded."""

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None,
        seeds: Sequence[int],
    ) -> Iterator[Event]:
        """Answer `prompts`; `seeds` has one for each."""
        ...

    def close(self) -> None:
        """Give the model's memory back; the engine answers no more."""
        ...


class VllmArguments(NamedTuple):
    """What vLLM must know before it starts."""

    max_rank: int | None  # largest rank of the adapters that will be asked for; None: none will
    gated: bool  # an adapter will be asked for with a tau, or entropies will
    max_model_len: int | None  # longest prompt plus answer, tokens; None: what the model allows
    seed: int
    dtype: Dtype = "auto"  # of weights and cache; auto: bfloat16, or as the checkpoint is stored
    tensor_parallel_size: int = 1  # GPUs that share the weights of one engine


def derive_seed(seed: int, *parts: object) -> int:
    """A 31-bit seed of its own for each (seed, parts), the same on every machine."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
