"""The worker that builds our model runner instead of vLLM's (--worker-cls)."""

from __future__ import annotations

from vllm.v1.worker import cpu_worker

from serving.engine.runner_v1 import GateRunnerV1


class GateCPUWorker(cpu_worker.CPUWorker):
    """The CPU worker with a gate."""

    def init_device(self) -> None:
        # The stock method builds the runner by this name and offers no other way in.
        cpu_worker.CPUModelRunner = GateRunnerV1
        super().init_device()
