"""The worker that builds our model runner instead of vLLM's on a GPU (--worker-cls)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.gpu_worker import Worker

from vllm_gate import patches
from vllm_gate.compat import check_parts

if TYPE_CHECKING:
    from vllm_gate.runner_v2 import GateRunnerV2


class GateGPUWorker(Worker):
    """The GPU worker with a gate."""

    def _make_model_runner(self) -> GateRunnerV2:  # type: ignore[override]
        check_parts(self.vllm_config)
        patches.install("runner v2")
        if not self.use_v2_model_runner:
            raise ValueError(
                "the gate needs vLLM's V2 model runner on a GPU (VLLM_USE_V2_MODEL_RUNNER=1, and "
                "no feature that it lacks); serve with --gate off"
            )
        from vllm_gate.runner_v2 import GateRunnerV2

        assert self.device is not None
        return GateRunnerV2(self.vllm_config, self.device)
