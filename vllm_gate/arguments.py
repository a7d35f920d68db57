"""Where a request's gate arguments are checked: at admission (--logits-processors).

vLLM asks a logits processor to validate a request's parameters before the engine sees them, and
answers its ValueError with status 400. This one edits no logits. It serves both model runners,
whose interfaces differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from vllm_gate import guidance, patches
from vllm_gate.engine_arguments import ARGUMENTS
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
        params = GateParams.of(sampling_params.extra_args)
        if params is None:
            return
        if params.guided:
            guidance.check_engine()
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


def build_logitsprocs(stock: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `build_logitsprocs` for the V1 runner, less GateArguments where drafts are verified.

    That runner refuses all logits processors with speculative decoding, since they would have to
    edit the logits of drafts. This one edits none.
    """

    @wraps(stock)
    def build(
        vllm_config: Any,
        device: Any,
        is_pin_memory: bool,
        is_pooling_model: bool,
        custom_logitsprocs: Sequence[str | type] = (),
    ) -> Any:
        if vllm_config.speculative_config is not None:
            ours = (ARGUMENTS, GateArguments)
            custom_logitsprocs = tuple(one for one in custom_logitsprocs if one not in ours)
        return stock(vllm_config, device, is_pin_memory, is_pooling_model, custom_logitsprocs)

    return build
