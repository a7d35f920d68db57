"""The engines behind the server: one, or with --data-parallel-size several.

Each is a process with weights, LoRA slots, a KV cache and a scheduler of its own. vLLM's client
loads, drops and pins an adapter in all of them, and asks all of them what their workers say, but
returns the first one's answer alone.

Written for vLLM 0.32 (v1/engine/core_client.py, DPLBAsyncMPClient).
"""

from __future__ import annotations

from typing import Any

from vllm.engine.protocol import EngineClient


def count(engine: EngineClient) -> int:
    """How many there are."""
    return int(engine.vllm_config.parallel_config.data_parallel_size)


async def on_each(engine: EngineClient, method: str) -> list[Any]:
    """What the first worker of each engine says, in the order of their ranks."""
    core = getattr(engine, "engine_core", None)
    ask_all = getattr(core, "call_utility_all_async", None)
    if ask_all is None:  # another vLLM, which has it only where there are several
        return [(await engine.collective_rpc(method))[0]]
    answers = await ask_all("collective_rpc", method, None, (), None)
    return [of_workers[0] for of_workers in answers]


def in_flight(engine: EngineClient, rank: int) -> int:
    """Requests that vLLM's client has given to one engine and that are not over."""
    core = getattr(engine, "engine_core", None)
    counts = getattr(core, "engine_inflight", None)
    return 0 if counts is None else int(counts[core.core_engines[rank]])  # type: ignore[union-attr]


def count_no_adapters(engine: EngineClient) -> None:
    """Have vLLM keep no series of adapters; /metrics has its own (router_metrics.py).

    In each step vLLM writes a series that names all adapters in flight, in the order in which they
    came. So there are ever more, which no process can take back and each scrape reads again.
    """
    for one in getattr(getattr(engine, "logger_manager", None), "stat_loggers", ()):
        if hasattr(one, "gauge_lora_info"):
            one.gauge_lora_info = None


def failure(engine: EngineClient) -> str | None:
    """How an engine has ended by itself; None where all run, or have been told to end."""
    if not engine.errored:
        return None
    core = getattr(engine, "engine_core", None)
    manager = getattr(getattr(core, "resources", None), "engine_manager", None)
    name = getattr(manager, "failed_proc_name", None)
    if name is None:
        return "an engine has ended"
    code = manager.finished_procs().get(name, 0)  # type: ignore[union-attr]
    return f"the process {name} has ended with " + (f"signal {-code}" if code < 0 else f"{code}")
