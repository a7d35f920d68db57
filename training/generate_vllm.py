"""Text from vLLM, offline.

vLLM runs in a child process with its engine inside that process: all requests are queued before the
first step, so a seed gives the same batches and the same tokens; and when the generator is closed
the operating system takes all its memory back, on a GPU too, for the trainer.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from adapters.engine import TAU, TEMPERATURE, gate_arguments
from training.generate import Applied, Completion, SamplingOptions, VllmArguments
from training.process import without_main

# vLLM has kernels for these ranks only.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmSource:
    """A vLLM engine in a child process, spoken to over a pipe."""

    def __init__(self, model: str, arguments: VllmArguments) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model, arguments))
        with without_main():
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
        applied: Applied | None,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, list[Completion]]]:
        """As Generator.stream."""
        if applied and applied.random_rate is not None:
            raise ValueError("the random gate is a control of --engine transformers")
        self._pipe.send((list(prompts), options, applied, list(seeds)))
        while (reply := self._receive()) is not None:
            yield reply

    def close(self) -> None:
        """End the child."""
        self._pipe.close()  # its next receive fails and it leaves
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, model: str, arguments: VllmArguments) -> None:
    """The child: an engine that answers until the pipe closes."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read by the CPU build only
    try:
        from vllm import LLM

        llm = LLM(model=model, disable_log_stats=True, **engine_args(arguments))
    except Exception as error:
        pipe.send(RuntimeError(f"vLLM could not start: {error}"))
        return
    adapters: dict[str, int] = {}
    try:
        pipe.send("ready")
        while True:
            prompts, options, applied, seeds = pipe.recv()
            try:
                _answer(pipe, llm, prompts, options, applied, seeds, adapters)
            except (EOFError, OSError):
                raise
            except Exception as error:
                pipe.send(RuntimeError(f"vLLM: {error}"))
    except (EOFError, OSError):
        return  # the parent closed the pipe or is gone


def engine_args(arguments: VllmArguments) -> dict[str, Any]:
    """The same in vLLM's words."""
    import torch

    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {"seed": arguments.seed, "enable_prefix_caching": True}
    if arguments.max_model_len:
        found["max_model_len"] = arguments.max_model_len
    if not gpu:
        # Compiling takes longer than it saves on the short runs that a CPU can make.
        found |= {"enforce_eager": True, "max_num_seqs": 256}
    if arguments.max_rank is not None:
        rank = next(size for size in RANKS if size >= arguments.max_rank)
        found |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    if arguments.gated:
        found |= gate_arguments("cuda" if gpu else "cpu")
    return found


def _answer(
    pipe: Connection,
    llm: Any,
    prompts: list[list[int]],
    options: SamplingOptions,
    applied: Applied | None,
    seeds: list[int],
    adapters: dict[str, int],
) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    lora, gate = None, None
    if applied is not None:
        # A number and name of its own for each path: neither weights nor cache are ever reused.
        path = str(applied.adapter)
        if applied.tau is not None:
            gate = {TAU: applied.tau, TEMPERATURE: applied.temperature}
        number = adapters.setdefault(path, len(adapters) + 1)
        lora = LoRARequest(f"adapter-{number}", number, path)
    engine = llm.llm_engine
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        params = SamplingParams(
            n=options.n,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            seed=seed,
            stop=list(options.stop),
            # All n completions in one output, once the last of them is done.
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=gate,
        )
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers = sorted(output.outputs, key=lambda one: one.index)
                pipe.send((int(output.request_id), [_completion(one) for one in answers]))
    pipe.send(None)


def _completion(output: Any) -> Completion:
    report = getattr(output, "gate", None)  # serving/engine/report.py puts it there
    return Completion(
        list(output.token_ids),
        output.text,
        str(output.finish_reason),
        report.gated if report else 0,
    )
