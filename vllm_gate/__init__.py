"""The gate inside vLLM.

    engine.py            the engine arguments that open the gate
    params.py            the gate's arguments of a request
    compat.py            what the gate cannot work with
    scheduler.py         replay: decision points, positions taken back, LoRA slots and turns
    step_plan.py         what the scheduler tells the workers about gated requests
    runner_v1.py         the gate in the model runner of the CPU build
    runner_v2.py         the gate in the model runner of GPUs; device_state.py its state there
    gpu_worker.py        the worker that builds it
    base_top_tokens.py   what a trace keeps of a decision point
    token_report.py      gated tokens on their way to the front end
    counters.py          Prometheus counters, kept by the scheduler
    pins.py              which adapters are pinned, for the scheduler
    worker_extension.py  which adapters a worker holds, and where
    plugin.py            what every vLLM process loads
    cpu/                 the worker of the CPU build, and corrections of that build

This package imports `adapters` alone. `training` and `serving` both use it.
tests/serving/test_engine_parts.py fails when vLLM changes under it.
"""

WRITTEN_FOR = "0.32"


def supported() -> bool:
    """Whether the installed vLLM is the one these files were written for."""
    from vllm.version import __version_tuple__

    major, minor = WRITTEN_FOR.split(".")
    return tuple(__version_tuple__[:2]) == (int(major), int(minor))
