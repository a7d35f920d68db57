"""Where a request's gate arguments are checked: at admission (--logits-processors).

vLLM asks a logits processor to validate a request's parameters before the engine sees them, and
answers its ValueError with status 400. This one edits no logits. It serves both model runners,
whose interfaces differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from vllm_gate import patches
from vllm_gate.params import GateParams

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate


class GateArguments(ProcessorV1, ProcessorV2):  # type: ignore[misc]
    """A logits processor of either model runner that changes nothing."""

    def __init__(self, *_: object) -> None:
        """Both interfaces' arguments; none is needed."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError where gating cannot work."""
        if GateParams.of(sampling_params.extra_args) is None:
            return
        if sampling_params.prompt_logprobs is not None or getattr(
            sampling_params, "prompt_logprob_token_ids", None
        ):
            raise ValueError(
                "prompt_logprobs (echo with logprobs): not with a gated model, whose last prompt "
                "position may run twice; ask the base or the plain adapter"
            )
        # The first gated request: from here on this process's outputs carry reports.
        patches.install("outputs")

    def is_argmax_invariant(self) -> bool:
        """It changes nothing."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: nothing is kept; each step's plan brings the thresholds."""

    def add_request(self, *_: object) -> bool:
        """V2: whether it edits this request's logits."""
        return False

    def apply(self, logits: torch.Tensor, *_: object) -> torch.Tensor:
        """Both interfaces: the same logits."""
        return logits
