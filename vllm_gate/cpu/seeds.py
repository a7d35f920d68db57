"""Seeded requests on the CPU build whose prompt is computed in pieces.

A row whose prompt is not finished samples a token that is thrown away, and vLLM 0.32 then rewinds
the request's random generator by an offset (v1/worker/gpu_model_runner.py, _bookkeeping_sync). CPU
generators have no offset: the call raises and takes the engine down. Here such rows sample without
their generator, which therefore never has to be rewound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner


@contextmanager
def _set_aside(runner: Any) -> Iterator[None]:
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

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        with _set_aside(self):
            return super()._sample(*args, **kwargs)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        with _set_aside(self):
            return super()._bookkeeping_sync(*args, **kwargs)
