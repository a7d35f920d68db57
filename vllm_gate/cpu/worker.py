"""The worker that builds our model runner instead of vLLM's on the CPU build (--worker-cls)."""

from __future__ import annotations

from vllm.v1.worker import cpu_worker


class GateCPUWorker(cpu_worker.CPUWorker):
    """The CPU worker with a gate."""

    def init_device(self) -> None:
        # The stock method builds the runner by these names and offers no other way in.
        if self.use_v2_model_runner:
            from vllm.v1.worker.cpu import model_runner

            from vllm_gate.runner_v2 import GateV2

            stock = model_runner.CPUModelRunner
            if not issubclass(stock, GateV2):
                model_runner.CPUModelRunner = type("GateCPURunnerV2", (GateV2, stock), {})
        else:
            from vllm_gate.runner_v1 import GateRunnerV1

            cpu_worker.CPUModelRunner = GateRunnerV1
        super().init_device()
