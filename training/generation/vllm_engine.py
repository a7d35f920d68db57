"""Text from vLLM, offline.

vLLM runs in a child process with its engine inside that process: all requests are queued before the
first step, so a seed gives the same batches and the same tokens; and when the generator is closed
the operating system takes all its memory back, on a GPU too, for the trainer. What vLLM and its
libraries print goes to a file, whose end is shown if the child dies.

Several engines (`--data-parallel-size`) are as many children, each with GPUs of its own and every
n-th prompt. Prompts have seeds of their own, so their answers do not depend on the number.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from training.generation.interface import (
    Applied,
    Completion,
    Event,
    Sampled,
    SamplingOptions,
    VllmArguments,
)
from training.spawn import without_main
from vllm_gate import GateParams, GateReport
from vllm_gate import engine_args as gate_arguments
from vllm_gate.params import NEVER

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# vLLM has kernels for these ranks only.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Of a process that `accelerate launch` started; the engine is a group of its own.
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class VllmEngine:
    """A vLLM engine in a child process, spoken to over a pipe.

    Args:
        devices: the GPUs that it may use, as CUDA_VISIBLE_DEVICES; None: all.
    """

    def __init__(self, model: str, arguments: VllmArguments, devices: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()  # where its events come from
        descriptor, log = tempfile.mkstemp(prefix="reasonmaxxer-vllm-", suffix=".log")
        os.close(descriptor)
        self._log = Path(log)
        self._process = context.Process(
            target=_serve, args=(theirs, model, arguments, log, devices)
        )
        with without_main():
            self._process.start()
        theirs.close()

    def receive(self) -> Event | None:
        """Its next event; None: all prompts are answered. The first one says that it has started.

        Raises:
            RuntimeError: vLLM cannot start, failed, or died; the message says why.
        """
        try:
            reply: Any = self.pipe.recv()
        except EOFError:
            self._process.join()
            lines = self._log.read_text(errors="replace").splitlines()
            raise RuntimeError(
                "\n".join([f"vLLM died with exit code {self._process.exitcode}", *lines[-20:]])
            ) from None
        if isinstance(reply, Exception):
            raise reply
        event: Event | None = reply
        return event

    def ask(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None,
        seeds: Sequence[int],
    ) -> None:
        """Send prompts; `receive` gives the answers."""
        self.pipe.send((list(prompts), options, applied, list(seeds)))

    def close(self) -> None:
        """End the child process; the system takes its memory back."""
        self.pipe.close()  # its next receive fails and it leaves
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.unlink(missing_ok=True)


class VllmEngines:
    """Engines side by side, which share the prompts.

    Raises:
        RuntimeError: one of them cannot start.
    """

    def __init__(self, model: str, arguments: VllmArguments, count: int = 1) -> None:
        self._engines: list[VllmEngine] = []
        try:
            for devices in shares_of_devices(count, arguments.tensor_parallel_size):
                self._engines.append(VllmEngine(model, arguments, devices))
            for engine in self._engines:
                engine.receive()
        except BaseException:
            self.close()
            raise

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None,
        seeds: Sequence[int],
    ) -> Iterator[Event]:
        """Answer `prompts`, as `SamplingEngine.stream`."""
        if applied and applied.random_rate is not None:
            raise ValueError("the random gate is a control of --engine transformers")
        count = len(self._engines)
        asked = {}
        for number, engine in enumerate(self._engines[: len(prompts)]):
            engine.ask(prompts[number::count], options, applied, seeds[number::count])
            asked[engine.pipe] = number
        sampled = dict.fromkeys(asked.values(), 0)
        while asked:
            for pipe in wait(list(asked)):
                number = asked[pipe]  # type: ignore[index]
                event = self._engines[number].receive()
                if event is None:
                    del asked[pipe]  # type: ignore[arg-type]
                elif isinstance(event, Sampled):
                    sampled[number] = event.tokens
                    yield Sampled(sum(sampled.values()))
                else:
                    index, completions = event
                    yield number + index * count, completions

    def close(self) -> None:
        """End the child processes; the system takes their memory back."""
        for engine in self._engines:
            engine.close()


def shares_of_devices(engines: int, each: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each engine: `each` GPUs of those that this process may use."""
    if engines == 1:
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = named.split(",") if named else [str(number) for number in range(engines * each)]
    return [",".join(devices[n * each : (n + 1) * each]) for n in range(engines)]


def _serve(
    pipe: Connection, model: str, arguments: VllmArguments, log: str, devices: str | None
) -> None:
    """The child: an engine that answers until the pipe closes."""
    _end_with_parent()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    for name in LAUNCHERS:
        os.environ.pop(name, None)
    with open(log, "ab", buffering=0) as file:
        for stream in (1, 2):  # C++ libraries write to these too
            os.dup2(file.fileno(), stream)
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


def _end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    A child that loads weights, for minutes perhaps, does not look at its pipe. Meanwhile the run
    that goes on where its killed parent stopped would find no room on the GPU.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before
        os._exit(1)


def engine_args(arguments: VllmArguments) -> dict[str, Any]:
    """The arguments of `vllm.LLM` for `arguments`, on this machine's device."""
    import torch

    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "enable_prefix_caching": True,
    }
    if arguments.tensor_parallel_size > 1:
        found["tensor_parallel_size"] = arguments.tensor_parallel_size
    if arguments.max_model_len:
        found["max_model_len"] = arguments.max_model_len
    if not gpu:
        # Compiling takes longer than it saves on the short runs that a CPU can make.
        found |= {"enforce_eager": True, "max_num_seqs": 256}
    if arguments.max_rank is not None:
        rank = next(size for size in RANKS if size >= arguments.max_rank)
        found |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    return found | gate_arguments("cuda" if gpu else "cpu", gate=arguments.gated)


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

    lora: LoRARequest | None = None
    trace = 2 if options.entropies else 0
    # A gate that never opens: it only looks.
    gate = GateParams(NEVER, trace=trace) if options.entropies else None
    if applied is not None:
        # A number and name of its own for each path: neither weights nor cache are ever reused.
        path = str(applied.adapter)
        if applied.tau is not None:
            scale, words = applied.guidance or (1.0, ())
            gate = GateParams(
                applied.tau,
                applied.temperature,
                trace,
                guidance_scale=scale,
                guidance_prompt=words,
            )
        elif options.entropies:
            raise ValueError("an adapter at every step leaves no base whose entropy to report")
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
            extra_args=gate.extra_args() if gate else None,
        )
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
    finished, told = 0, 0.0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers = sorted(output.outputs, key=lambda one: one.index)
                finished += sum(len(one.token_ids) for one in answers)
                pipe.send(
                    (
                        int(output.request_id),
                        [
                            _completion(one, GateReport.of(output, one.index), options.entropies)
                            for one in answers
                        ],
                    )
                )
        if time.monotonic() >= told + 1:
            told = time.monotonic()
            pipe.send(Sampled(finished + _unfinished(engine)))
    pipe.send(None)


def _unfinished(engine: Any) -> int:
    """Tokens of prompts whose answers are not all finished yet."""
    processor = engine.output_processor
    running = sum(
        state.detokenizer.num_output_tokens() for state in processor.request_states.values()
    )
    waiting = sum(  # finished answers that wait for others to their prompt
        len(one.token_ids)
        for parent in processor.parent_requests.values()
        for one in parent.output_aggregator
        if one is not None
    )
    return running + waiting


def _completion(output: Any, report: GateReport | None, entropies: bool) -> Completion:
    return Completion(
        list(output.token_ids),
        output.text,
        str(output.finish_reason),
        report.gated_tokens if report else 0,
        [token["entropy"] for token in report.trace] if report and entropies else None,
    )
