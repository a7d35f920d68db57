"""The workers of the CPU build (--worker-cls): corrected, and corrected with a gate.

vLLM's CPU worker makes its model runner in `init_device` and has no other way in. So the runner
that it has made gets our class, a subclass of its own.
"""

from __future__ import annotations

from vllm.v1.worker import cpu_worker

from vllm_gate import patches
from vllm_gate.compat import check_parts


class CorrectedCPUWorker(cpu_worker.CPUWorker):
    """The CPU worker without the faults of vLLM's CPU build (see patches.py), and no gate."""

    def init_device(self) -> None:
        patches.install("cpu")
        drafts = self.vllm_config.speculative_config
        if drafts is not None and not self.use_v2_model_runner:
            patches.install("cpu drafts")
            if drafts.method == "ngram":  # not otherwise: it loads numba
                patches.install("cpu ngram")
        super().init_device()
        if not self.use_v2_model_runner:
            from vllm_gate.cpu.seeds import SeededRows

            self.model_runner.__class__ = SeededRows


class GateCPUWorker(CorrectedCPUWorker):
    """The corrected CPU worker with a gate."""

    def init_device(self) -> None:
        check_parts(self.vllm_config)
        patches.install("runner v2" if self.use_v2_model_runner else "runner v1")
        super().init_device()
        if self.use_v2_model_runner:
            from vllm_gate.runner_v2 import GateV2

            theirs = type(self.model_runner)
            self.model_runner.__class__ = type("GateCPURunnerV2", (GateV2, theirs), {})
        else:
            from vllm_gate.runner_v1 import GateRunnerV1

            self.model_runner.__class__ = GateRunnerV1
