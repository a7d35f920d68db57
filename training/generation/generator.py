"""A generator answers prompts with the engine that was asked for, or with one that starts."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from training.generation.interface import (
    Applied,
    Completion,
    EngineName,
    Sampled,
    SamplingEngine,
    SamplingOptions,
    VllmArguments,
    derive_seed,
)
from training.generation.token_rate import TokenRate
from training.hf_model import Dtype, free_memory

logger = logging.getLogger(__name__)


def vllm_is_here() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


class Generator:
    """Answers prompts; its engine starts at the first question with a prompt in it."""

    def __init__(
        self, model: str, engine: EngineName, engine_args: VllmArguments, engines: int = 1
    ) -> None:
        self._model, self._engine, self._engine_args = model, engine, engine_args
        self._engines = engines
        self._started: SamplingEngine | None = None

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

    def _start(self) -> SamplingEngine:
        free_memory()  # of a model that this process has trained: a GPU must have room
        if self._engine == "vllm" or (self._engine == "auto" and vllm_is_here()):
            from training.generation.vllm_engine import VllmEngines

            try:
                return VllmEngines(self._model, self._engine_args, self._engines)
            except RuntimeError as error:
                if self._engine == "vllm":
                    raise
                logger.warning("%s; sampling with transformers instead", error)
        from training.generation.transformers_engine import TransformersEngine

        return TransformersEngine(self._model, self._engine_args.dtype)

    def close(self) -> None:
        """Stop the engine, if it was started."""
        if self._started:
            self._started.close()


@contextmanager
def open_generator(
    model: str,
    *,
    engine: EngineName = "auto",
    max_rank: int | None = None,
    gated: bool = False,
    max_model_len: int | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
) -> Iterator[Generator]:
    """A generator for `model`; its memory is free again afterwards.

    Args:
        engine: vllm, transformers, or auto: vLLM where it starts, else transformers.
        data_parallel_size: engines side by side, each with the whole base and a share of the
            prompts.

    The others: see VllmArguments.
    """
    arguments = VllmArguments(max_rank, gated, max_model_len, seed, dtype, tensor_parallel_size)
    generator = Generator(model, engine, arguments, data_parallel_size)
    try:
        yield generator
    finally:
        generator.close()
