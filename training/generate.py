"""Text from a base model, with an adapter nowhere, at every step or at decision points only.

generate.py        what can be asked for, and which engine answers
generate_vllm.py   vLLM offline, in a child process
generate_hf.py     transformers, where vLLM cannot run; gated.py: gated decoding there
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tqdm import tqdm

from adapters.manifest import Gate, Mode

logger = logging.getLogger(__name__)

Engine = Literal["auto", "vllm", "transformers"]


def vllm_is_here() -> bool:
    """vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


class Completion(NamedTuple):
    """One answer.

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


class Applied(NamedTuple):
    """An adapter and where it runs."""

    adapter: Path  # a PEFT folder
    tau: float | None = None  # nats: where the base's entropy exceeds it; None: at every step
    random_rate: float | None = None  # a control: at this share of steps, drawn by lot
    temperature: float = 1.0  # divides the adapter's logits where the gate is open

    @classmethod
    def behind(cls, adapter: Path, gate: Gate | None, tau: float | None = None) -> Applied:
        """As it is served: where `gate` opens, or at another threshold; one of them is needed."""
        if tau is None:
            assert gate is not None
            tau = gate.tau
        return cls(adapter, tau, temperature=gate.temperature if gate else 1.0)

    @classmethod
    def by_lot(cls, adapter: Path, gate: Gate) -> Applied:
        """A control: at the gate rate of `gate`, and as sure, but anywhere."""
        return cls(adapter, random_rate=gate.rate, temperature=gate.temperature)

    @property
    def mode(self) -> Mode:
        """As a manifest says it."""
        return "always" if self.tau is None and self.random_rate is None else "gated"


class Sampled(NamedTuple):
    """Tokens sampled so far by a call of `stream`, those of unfinished answers included."""

    tokens: int


# What a stream yields: an index of a prompt with its `n` completions as prompts finish, in any
# order, and every second or so how far it is.
Event = tuple[int, list[Completion]] | Sampled


class Source(Protocol):
    """An engine."""

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
        """Give everything back."""
        ...


class Generator:
    """Answers prompts; its engine starts at the first question with a prompt in it."""

    def __init__(self, model: str, engine: Engine, engine_args: VllmArguments) -> None:
        self._model, self._engine, self._engine_args = model, engine, engine_args
        self._started: Source | None = None

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None = None,
        seeds: Sequence[int] | None = None,
        on_tokens: Callable[[int], object] = lambda _: None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its `n` completions) as prompts finish, in any order.

        Args:
            applied: None: the base.
            seeds: one per prompt; by default derived from `options.seed` and the index.
            on_tokens: told every second or so how many tokens this call has sampled, those of
                unfinished answers included.

        Raises:
            RuntimeError: the engine that was asked for cannot start.
        """
        if prompts:
            seeds = seeds or [derive_seed(options.seed, index) for index in range(len(prompts))]
            self._started = self._started or self._start()
            for event in self._started.stream(prompts, options, applied, seeds):
                if isinstance(event, Sampled):
                    on_tokens(event.tokens)
                else:
                    yield event

    def generate(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None = None,
        label: str = "sampling",
    ) -> list[list[Completion]]:
        """All completions, in the order of the prompts, with a progress bar named `label`."""
        answers: list[list[Completion]] = [[] for _ in prompts]
        with tqdm(total=len(prompts), desc=label, unit="problem") as bar:
            rate = TokenRate(bar)
            for index, completions in self.stream(prompts, options, applied, on_tokens=rate):
                answers[index] = completions
                bar.update()
        return answers

    @property
    def reports_entropies(self) -> bool:
        """Whether `SamplingOptions.entropies` may be asked for; transformers then gives none."""
        return self._engine_args.gated

    def _start(self) -> Source:
        if self._engine == "vllm" or (self._engine == "auto" and vllm_is_here()):
            from training.generate_vllm import VllmSource

            try:
                return VllmSource(self._model, self._engine_args)
            except RuntimeError as error:
                if self._engine == "vllm":
                    raise
                logger.warning("%s; sampling with transformers instead", error)
        from training.generate_hf import TransformersSource

        return TransformersSource(self._model)

    def close(self) -> None:
        """Stop the engine, if it was started."""
        if self._started:
            self._started.close()


class TokenRate:
    """Shows tokens per second in a bar over problems.

    The problems of a large batch finish together, late; tokens come from the first second on.
    """

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar, self._tokens = bar, 0
        self._first: tuple[float, int] | None = None  # when the engine had started
        self.note = ""  # shown in front

    def __call__(self, tokens: int) -> None:
        """So many tokens have been sampled since the bar began."""
        self._tokens = tokens
        self._first = self._first or (time.monotonic(), tokens)
        self.show()

    def show(self) -> None:
        """Draw the bar."""
        parts = [self.note] if self.note else []
        if self._first is not None:
            since, before = self._first
            seconds = time.monotonic() - since
            rate = f", {(self._tokens - before) / seconds:,.0f}/s" if seconds > 0 else ""
            parts.append(f"{self._tokens:,} tokens{rate}")
        self._bar.set_postfix_str(", ".join(parts))


class VllmArguments(NamedTuple):
    """What vLLM must know before it starts."""

    max_rank: int | None  # largest rank of the adapters that will be asked for; None: none will
    gated: bool  # an adapter will be asked for with a tau, or entropies will
    max_model_len: int | None  # longest prompt plus answer, tokens; None: what the model allows
    seed: int
    dtype: str = "auto"  # of weights and cache; auto: bfloat16, or as the checkpoint is stored


@contextmanager
def open_generator(
    model: str,
    *,
    engine: Engine = "auto",
    max_rank: int | None = None,
    gated: bool = False,
    max_model_len: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
) -> Iterator[Generator]:
    """A generator for `model`; its memory is free again afterwards.

    Args:
        engine: vllm, transformers, or auto: vLLM where it starts, else transformers.

    The others: see VllmArguments.
    """
    arguments = VllmArguments(max_rank, gated, max_model_len, seed, dtype)
    generator = Generator(model, engine, arguments)
    try:
        yield generator
    finally:
        generator.close()


def derive_seed(seed: int, *parts: object) -> int:
    """A 31-bit seed of its own for each (seed, parts), the same on every machine."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
