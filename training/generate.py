"""Text from a base model, with or without an adapter: vLLM offline, or transformers without it.

vLLM runs in a child process with its engine inside that process: all requests are queued before the
first step, so a seed gives the same batches and the same tokens; and when the generator is closed
the operating system takes all its memory back, on a GPU too, for the trainer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tqdm import tqdm

logger = logging.getLogger(__name__)

Engine = Literal["auto", "vllm", "transformers"]


class Completion(NamedTuple):
    """One answer. `token_ids` end with the end-of-sequence token when `finish_reason` is stop."""

    token_ids: list[int]
    text: str
    finish_reason: str  # "stop" or "length"


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample. Temperature 0 is greedy."""

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 2048
    seed: int = 0


class Generator(Protocol):
    """What can answer prompts."""

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its `n` completions) as prompts finish, in any order.

        `seeds`: one per prompt; by default derived from `options.seed` and the index.
        """
        ...

    def generate(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        label: str = "sampling",
    ) -> list[list[Completion]]:
        """All completions, in the order of the prompts, with a progress bar named `label`."""
        ...


def derive_seed(seed: int, *parts: object) -> int:
    """A 31-bit seed of its own for each (seed, parts), the same on every machine."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class _Collecting:
    """`generate` by way of `stream`."""

    def generate(
        self: Generator,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        label: str = "sampling",
    ) -> list[list[Completion]]:
        answers: list[list[Completion]] = [[] for _ in prompts]
        with tqdm(total=len(prompts), desc=label, unit="problem") as bar:
            for index, completions in self.stream(prompts, options, adapter):
                answers[index] = completions
                bar.update()
        return answers


# ---------------------------------------------------------------------------------------- vLLM


class VllmGenerator(_Collecting):
    """A vLLM engine in a child process, spoken to over a pipe."""

    def __init__(self, model: str, engine_args: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model, engine_args))
        self._process.start()
        theirs.close()
        self._receive()  # "ready", or the reason why not

    def _receive(self) -> Any:
        try:
            reply = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"vLLM died with exit code {self._process.exitcode}") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        seeds = seeds or [derive_seed(options.seed, index) for index in range(len(prompts))]
        self._pipe.send((list(prompts), options, str(adapter) if adapter else None, list(seeds)))
        while (reply := self._receive()) is not None:
            yield reply

    def close(self) -> None:
        self._pipe.close()  # the child's next receive fails and it leaves
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, model: str, engine_args: dict[str, Any]) -> None:
    """The child: an engine that answers until the pipe closes."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read by the CPU build only
    try:
        from vllm import LLM

        llm = LLM(model=model, disable_log_stats=True, **engine_args)
    except Exception as error:
        pipe.send(RuntimeError(f"vLLM could not start: {error}"))
        return
    adapters: dict[str, int] = {}
    try:
        pipe.send("ready")
        while True:
            prompts, options, adapter, seeds = pipe.recv()
            try:
                _answer(pipe, llm, prompts, options, adapter, seeds, adapters)
            except (EOFError, OSError):
                raise
            except Exception as error:
                pipe.send(RuntimeError(f"vLLM: {error}"))
    except (EOFError, OSError):
        return  # the parent closed the pipe or is gone


def _answer(
    pipe: Connection,
    llm: Any,
    prompts: list[list[int]],
    options: SamplingOptions,
    adapter: str | None,
    seeds: list[int],
    adapters: dict[str, int],
) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    lora = None
    if adapter is not None:
        # A number and name of its own for each path: neither weights nor cache are ever reused.
        number = adapters.setdefault(adapter, len(adapters) + 1)
        lora = LoRARequest(f"adapter-{number}", number, adapter)
    engine = llm.llm_engine
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        params = SamplingParams(
            n=options.n,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            seed=seed,
            # All n completions in one output, once the last of them is done.
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                completions = [
                    Completion(list(one.token_ids), one.text, str(one.finish_reason))
                    for one in sorted(output.outputs, key=lambda one: one.index)
                ]
                pipe.send((int(output.request_id), completions))
    pipe.send(None)


# -------------------------------------------------------------------------------- transformers


class TransformersGenerator(_Collecting):
    """transformers' `generate` in batches, for machines where vLLM cannot run."""

    def __init__(self, model: str, batch_size: int = 256) -> None:
        from transformers import AutoTokenizer

        from training.model import load_model

        self._model = load_model(model)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._batch_size = batch_size

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        import torch
        from peft import PeftModel

        seeds = seeds or [derive_seed(options.seed, index) for index in range(len(prompts))]
        model: Any = PeftModel.from_pretrained(self._model, adapter) if adapter else self._model
        try:
            per_batch = max(1, self._batch_size // options.n)
            for start in range(0, len(prompts), per_batch):
                batch = prompts[start : start + per_batch]
                with torch.random.fork_rng(), torch.inference_mode():
                    torch.manual_seed(seeds[start])
                    answers = self._batch(model, batch, options)
                for offset in range(len(batch)):
                    mine = answers[offset * options.n : (offset + 1) * options.n]
                    yield start + offset, mine
        finally:
            if adapter:
                model.unload()  # takes the LoRA layers out again

    def _batch(
        self, model: Any, prompts: Sequence[list[int]], options: SamplingOptions
    ) -> list[Completion]:
        import torch

        width = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        if pad is None:
            pad = self._tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        real = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
        )
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
            if options.temperature > 0
            else {"do_sample": False}
        )
        output = model.generate(
            input_ids=ids,
            attention_mask=real,
            num_return_sequences=options.n,
            max_new_tokens=options.max_tokens,
            pad_token_id=pad,
            top_k=0,
            **sampling,
        )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        return [self._completion(row, ends) for row in output[:, width:].tolist()]

    def _completion(self, row: list[int], ends: set[int]) -> Completion:
        end = next((i for i, token in enumerate(row) if token in ends), None)
        token_ids = row if end is None else row[: end + 1]
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(token_ids, text, "length" if end is None else "stop")

    def close(self) -> None:
        del self._model


# ---------------------------------------------------------------------------------------- both


@contextmanager
def open_generator(
    model: str,
    *,
    engine: Engine = "auto",
    max_rank: int | None = None,
    max_model_len: int | None = None,
    seed: int = 0,
) -> Iterator[Generator]:
    """A generator for `model`, started at its first prompt; its memory is free again afterwards.

    Args:
        engine: vllm, transformers, or auto: vLLM where it starts, else transformers.
        max_rank: largest rank of the adapters that will be asked for; None: none will.
        max_model_len: longest prompt plus answer in tokens; None: what the model allows.

    `stream` and `generate` raise RuntimeError when the engine asked for cannot start.
    """
    generator = _OnDemand(model, engine, _engine_args(max_rank, max_model_len, seed))
    try:
        yield generator
    finally:
        generator.close()


class _OnDemand(_Collecting):
    """A generator that starts its engine at the first question with a prompt in it."""

    def __init__(self, model: str, engine: Engine, engine_args: dict[str, Any]) -> None:
        self._model, self._engine, self._engine_args = model, engine, engine_args
        self._started: VllmGenerator | TransformersGenerator | None = None

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        adapter: Path | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        if prompts:
            self._started = self._started or self._start()
            yield from self._started.stream(prompts, options, adapter, seeds)

    def _start(self) -> VllmGenerator | TransformersGenerator:
        if self._engine == "vllm" or (self._engine == "auto" and importlib.util.find_spec("vllm")):
            try:
                return VllmGenerator(self._model, self._engine_args)
            except RuntimeError as error:
                if self._engine == "vllm":
                    raise
                logger.warning("%s; sampling with transformers instead", error)
        return TransformersGenerator(self._model)

    def close(self) -> None:
        if self._started:
            self._started.close()


# vLLM compiles its LoRA kernels for these ranks only.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _engine_args(max_rank: int | None, max_model_len: int | None, seed: int) -> dict[str, Any]:
    import torch

    arguments: dict[str, Any] = {"seed": seed, "enable_prefix_caching": True}
    if max_model_len:
        arguments["max_model_len"] = max_model_len
    if not torch.cuda.is_available():
        # Compiling takes longer than it saves on the short runs that a CPU can make.
        arguments |= {"enforce_eager": True, "max_num_seqs": 256}
    if max_rank is not None:
        rank = next(size for size in _VLLM_RANKS if size >= max_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    return arguments
