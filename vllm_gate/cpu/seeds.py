"""Seeded requests on the CPU build whose prompt is computed in pieces.

A row whose prompt is not finished samples a token that is thrown away, and vLLM 0.32 then rewinds
the request's random generator by an offset (v1/worker/gpu_model_runner.py, _bookkeeping_sync). CPU
generators have no offset: the call raises and takes the engine down. Here such rows sample without
their generator, which therefore never has to be rewound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm.v1.worker.cpu_model_runner import CPUModelRunner

if TYPE_CHECKING:
    import torch
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import LogprobsLists, LogprobsTensors, SamplerOutput
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    Bookkeeping = tuple[
        dict[str, int],
        torch.Tensor | None,
        LogprobsLists | None,
        list[list[int]],
        dict[str, LogprobsTensors | None],
        list[str],
        dict[str, int],
        list[int],
    ]


@contextmanager
def _set_aside(runner: CPUModelRunner) -> Iterator[None]:
    """Take the generators of the rows to be discarded out of the batch for a while."""
    generators = runner.input_batch.generators  # row -> generator; the sampler holds this very dict
    discarded = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0]
    aside = {int(row): generators.pop(int(row)) for row in discarded if int(row) in generators}
    try:
        yield
    finally:
        generators.update(aside)


class SeededRows(CPUModelRunner):
    """The V1 model runner of the CPU build, whose generators are never rewound."""

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        with _set_aside(self):
            return super()._sample(logits, spec_decode_metadata)

    def _bookkeeping_sync(
        self,
        scheduler_output: SchedulerOutput,
        sampler_output: SamplerOutput,
        logits: torch.Tensor | None,
        hidden_states: torch.Tensor,
        num_scheduled_tokens: int,
    ) -> Bookkeeping:
        with _set_aside(self):
            return super()._bookkeeping_sync(
                scheduler_output, sampler_output, logits, hidden_states, num_scheduled_tokens
            )
