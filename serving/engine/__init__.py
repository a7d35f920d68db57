"""All that touches vLLM's private parts, and the version it was written for.

    admission.py   asks our registry before vLLM looks up a model's name
    cpu_lora.py    CPU LoRA kernels that give base rows base outputs
    cpu_layers.py  LoRA layers that do no work for rows, modules and ranks that need none
    cpu_seeds.py   seeded requests whose prompt is computed in pieces, on the CPU
    cpu_sampling.py  top-p and top-k on the CPU without sorting the vocabulary
    hooks.py       where the gate goes in, and what it is refused with
    plan.py        what the scheduler tells the workers about gated requests
    scheduler.py   replay: decision points, positions taken back, LoRA slots and turns
    runner_v1.py   the gate in the CPU build's model runner
    runner_v2.py   the gate in the GPU's model runner; table.py its state on the device
    worker.py      the workers that build these runners; gpu_worker.py likewise
    evidence.py    what a trace keeps of a decision point
    report.py      gated tokens on their way to the front end; usage.py into the answer
    counters.py    Prometheus counters, kept by the scheduler
    pins.py        which adapters are pinned, for the scheduler
    residency.py   which adapters a worker holds, and where

tests/serving/test_engine_parts.py fails when vLLM changes under these.
"""

WRITTEN_FOR = "0.32"


def supported() -> bool:
    """Whether the installed vLLM is the one these files were written for."""
    from vllm.version import __version_tuple__

    major, minor = WRITTEN_FOR.split(".")
    return tuple(__version_tuple__[:2]) == (int(major), int(minor))
