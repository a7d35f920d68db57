"""The engine arguments that open the gate, offline and in `vllm serve`."""

from __future__ import annotations

from typing import Any

from vllm_gate import patches
from vllm_gate.errors import GateError

SCHEDULER = "vllm_gate.scheduler.make_scheduler"
WORKERS = {
    "cpu": "vllm_gate.cpu.worker.GateCPUWorker",
    "cuda": "vllm_gate.gpu_worker.GateGPUWorker",
}
ARGUMENTS = "vllm_gate.arguments:GateArguments"
# The CPU build's worker with vLLM's faults corrected, and without a gate.
CORRECTED = "vllm_gate.cpu.worker.CorrectedCPUWorker"


def engine_args(device: str, *, gate: bool = True) -> dict[str, Any]:
    """Arguments of `vllm.LLM` or `AsyncEngineArgs` for an engine whose requests may be gated.

        llm = LLM(model, enable_lora=True, **engine_args("cpu"))

    `vllm serve` takes the same values as --scheduler-cls, --worker-cls and --logits-processors.

    Args:
        device: "cpu" or "cuda", as `vllm.platforms.current_platform.device_type` says.
        gate: False: no gate. On the CPU the faults of vLLM's build are corrected all the same.

    Raises:
        GateError: the gate does not work with the installed vLLM, or on such a device.
    """
    if not gate:
        return {"worker_cls": CORRECTED} if device == "cpu" and patches.supported() else {}
    patches.check_version()
    if device not in WORKERS:
        raise GateError(
            f"the gate has no model runner for '{device}' devices; serve with --gate off"
        )
    patches.check()
    return {
        "scheduler_cls": SCHEDULER,
        "worker_cls": WORKERS[device],
        "logits_processors": [ARGUMENTS],
    }
