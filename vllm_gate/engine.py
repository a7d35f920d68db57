"""How vLLM is told to gate: the names that go into its arguments and into a request.

`serving` puts them into the server's engine, `training` into the one it evaluates with. They are
text, so neither wing has to import the other.
"""

from __future__ import annotations

from typing import Any

# In SamplingParams.extra_args of a gated request.
TAU = "gate_tau"  # its threshold, nats
TEMPERATURE = "gate_temperature"  # divides the logits of its decision points; 1 where absent
TRACE = "gate_trace"  # 1: report decision points; 2: report the base's entropy at every token

# A threshold that no vocabulary's entropy reaches, nats. The base may be asked with this one alone:
# the gate never opens, and with TRACE it reports entropies.
NEVER = 1e9

SCHEDULER = "vllm_gate.scheduler.make_scheduler"
WORKERS = {
    "cpu": "vllm_gate.cpu.worker.GateCPUWorker",
    "cuda": "vllm_gate.gpu_worker.GateGPUWorker",
}
ARGUMENTS = "vllm_gate.params:GateArguments"


def gate_arguments(device_type: str) -> dict[str, Any]:
    """vLLM's engine arguments for an engine that can gate, on a device that can.

    Raises:
        KeyError: the gate has no model runner for such devices.
    """
    return {
        "scheduler_cls": SCHEDULER,
        "worker_cls": WORKERS[device_type],
        "logits_processors": [ARGUMENTS],
    }
